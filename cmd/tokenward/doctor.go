package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

func newDoctorCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Check the token store and its audit log, and say what is wrong and what to do",
		Long: "Check a store that is not being served: who can reach its files, whether the peppers\n" +
			"fit, every record, index and count in it, the whole audit log, and whether the two\n" +
			"belong together. Nothing is changed.\n\n" +
			"The exit code is 0 when nothing is wrong, and 1 otherwise. What could only be better\n" +
			"is a warning.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := doctor{now: time.Now, path: config}
			d.examine(cmd.Context())
			if err := d.write(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			if n := d.wrong(); n > 0 {
				return fmt.Errorf("%s found: see above for what to do", counted(n, "fault"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "tokenward.yaml", "configuration file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// finding is one thing that the doctor looked at.
type finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Warning bool   `json:"warning,omitempty"` // it could be better, and OK
	Detail  string `json:"detail"`
	Do      string `json:"do,omitempty"`
}

// doctor looks at everything and keeps what it found.
type doctor struct {
	now      func() time.Time
	path     string // of the configuration
	cfg      *Config
	files    []configFault // faults of the files that it names
	peppers  *tokenstore.Peppers
	store    *boltstore.Store
	findings []finding
}

func (d *doctor) fine(check, format string, args ...any) {
	d.findings = append(d.findings, finding{Check: check, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (d *doctor) fault(check, detail, do string) {
	d.findings = append(d.findings, finding{Check: check, Detail: withConfig(detail, d.path), Do: do})
}

func (d *doctor) warn(check, detail, do string) {
	d.findings = append(d.findings, finding{Check: check, OK: true, Warning: true, Detail: detail, Do: do})
}

func (d *doctor) wrong() (n int) {
	for i := range d.findings {
		if !d.findings[i].OK {
			n++
		}
	}
	return n
}

func (d *doctor) examine(ctx context.Context) {
	var err error
	if d.cfg, err = loadConfig(d.path); err != nil {
		d.fault("configuration", err.Error(), "correct it, until "+d.command("check")+" finds no fault")
		return
	}
	d.lookAtFiles()
	if d.peppers, err = readPeppers(d.cfg.TokenStore.PepperFiles); err != nil {
		if d.said("tokenstore.pepper_files") {
			err = errors.New("store and audit log were not examined, since that takes all peppers")
		}
		d.fault("peppers", err.Error(), "correct tokenstore.pepper_files, or put its files back from where their copies are kept, then run this again")
		return
	}
	d.openStore(ctx)
	if d.store != nil {
		defer d.store.Close()
	}
	d.auditLog()
}

// command is a command line of tokenward with the same configuration.
func (d *doctor) command(verb string) string {
	return "`tokenward " + verb + " --config " + shellWord(d.path) + "`"
}

// said reports whether a fault of the files that the key names is among the findings.
func (d *doctor) said(key string) bool {
	return slices.ContainsFunc(d.files, func(f configFault) bool { return strings.HasPrefix(f.Key, key) })
}

// lookAtFiles looks at the files that the configuration names, and at who can reach
// store and log. As with keys, their group may, since Kubernetes gives a volume to
// a pod by group.
func (d *doctor) lookAtFiles() {
	before := len(d.findings)
	var warnings []configFault
	d.files, warnings = d.cfg.checkFiles(d.now())
	for _, f := range d.files {
		d.fault("files", f.Key+": "+f.Problem, f.Fix)
	}
	for _, f := range warnings {
		d.warn("files", f.Key+": "+f.Problem, f.Fix)
	}
	for _, path := range []string{d.cfg.TokenStore.Path, d.cfg.Audit.Path} {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue // what is to be said about it is said where it is opened
		}
		switch mode := info.Mode().Perm(); {
		case mode&0o007 != 0:
			d.fault("files", fmt.Sprintf("others can reach %s (mode %04o)", path, mode), "run `chmod 600 "+shellWord(path)+"`; if others could write it, restore a backup from before")
		case mode&0o070 != 0:
			d.warn("files", fmt.Sprintf("its group can reach %s (mode %04o)", path, mode), "run `chmod 600 "+shellWord(path)+"` unless only the server is in that group")
		}
	}
	if len(d.findings) == before {
		d.fine("files", "nobody else can reach store, log and keys")
	}
}

func (d *doctor) openStore(ctx context.Context) {
	path := d.cfg.TokenStore.Path
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&^0o600 != 0 {
		defer os.Chmod(path, info.Mode().Perm()) //nolint:errcheck // opening tightens it, and nothing is mended here
	}
	o := boltstore.Options{Path: path, Peppers: d.peppers, Logger: slog.New(slog.DiscardHandler)}
	fix := "keep the file, check the disk, then " + d.command("restore --replace BACKUP") + " with the latest backup"
	if d.cfg.TokenStore.Etcd.Enabled() {
		if errors.Is(err, fs.ErrNotExist) {
			d.fine("store", "the tokens are in etcd, and this node has no copy of them now")
			return
		}
		fix = "remove the file: the node fetches all tokens from etcd anew when it starts"
		o.ReplicaOf = d.followed(path)
	}
	s, err := boltstore.Open(o)
	switch {
	case errors.Is(err, boltstore.ErrInUse):
		d.fault("store", err.Error(), "stop the server first; or look at a copy: make a backup with `tokenward backup -o BACKUP`, and restore it with a configuration that has another tokenstore.path")
		return
	case err != nil:
		d.fault("store", err.Error(), "if it says nothing better: "+fix)
		return
	}
	d.store = s
	var faults []string
	err = s.Check(ctx, func(fault string) { faults = append(faults, fault) })
	const shown = 20
	for i, fault := range faults {
		if i == shown {
			d.fault("store", fmt.Sprintf("%d more faults", len(faults)-shown), "")
			break
		}
		d.fault("store", fault, fix)
	}
	if err != nil {
		d.fault("store", err.Error(), fix)
	}
	if len(faults) == 0 && err == nil {
		st := s.Stats()
		sealed := "its records are not sealed: there is no pepper"
		if d.peppers != nil {
			sealed = "its records are sealed"
		}
		d.fine("store", "sound: %d active, %d disabled, %d revoked tokens, %d bytes; %s", st.Active, st.Disabled, st.Revoked, st.FileBytes, sealed)
	}
	if o.ReplicaOf != "" {
		d.fine("outbox", "events of this node wait in etcd")
	} else if waiting := s.Stats().Outbox; waiting > 0 {
		// A restore and a kill leave some behind; it is no fault, for nothing is lost.
		d.fine("outbox", "waiting for the audit log: %s, which the server writes there when it starts; if they stay, its log says why", counted(waiting, "event"))
	} else {
		d.fine("outbox", "no event waits")
	}
}

// followed is the store in etcd that the file is a copy of; if it is none, opening it
// as a copy says so.
func (d *doctor) followed(path string) string {
	p, _, err := boltstore.Follows(path)
	if err != nil || p.Store == "" {
		return "none"
	}
	return p.Store
}

func (d *doctor) auditLog() {
	path := d.cfg.Audit.Path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		d.fault("audit", "there is no audit log at "+path, "put it back from where copies are kept, or correct audit.path; without it, what a restore gives back cannot be told")
		return
	}
	keys, err := d.cfg.auditKeys(d.peppers)
	if err != nil && !d.said("audit.signing_key_file") {
		d.fault("audit", err.Error(), "put the key back, or correct audit.signing_key_file")
	}
	report, err := audit.Verify(path, keys)
	if err != nil {
		d.fault("audit", err.Error(), "if a key is missing, put the pepper it was written under back into tokenstore.pepper_files")
		return
	}
	for _, f := range report.Faults {
		d.fault("audit", f.String(), "keep all its files as they are, and compare them with a copy kept elsewhere")
	}
	if len(report.Faults) == 0 {
		d.fine("audit", "whole: lines %d to %d, %s; head %s", report.First, report.Last, counted(int(report.Events), "event"), report.Head) //nolint:gosec // a count of lines
	}
	d.together(path)
}

// together looks whether the log has what the store handed to it last.
func (d *doctor) together(path string) {
	if d.store == nil || d.cfg.TokenStore.Etcd.Enabled() {
		return // a copy does not know what its node handed over
	}
	_, last, err := d.store.Position()
	if err != nil {
		return
	}
	given := last - uint64(d.store.Stats().Outbox) //nolint:gosec // a count
	seen := uint64(0)
	for record, err := range audit.Records(path) {
		if err != nil {
			return // a fault that is listed already
		}
		if record.Source == d.store.ID() {
			seen = max(seen, record.Seq)
		}
	}
	switch {
	case seen < given:
		d.fault("audit", fmt.Sprintf("the store handed over %d events, and the log knows %d at most: its end was cut off, or it is the log of another store", given, seen), "put the log back from where copies are kept")
	case seen > last:
		d.fault("audit", fmt.Sprintf("the log knows event %d of this store, which has made only %d: the store is an older copy", seen, last), "run "+d.command("restore --replace BACKUP")+" with the latest backup, or with one of this copy, made with "+d.command("backup -o BACKUP")+": it takes away what was revoked since")
	}
}

func (d *doctor) write(w io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			OK       bool      `json:"ok"`
			Findings []finding `json:"findings"`
		}{d.wrong() == 0, d.findings})
	}
	var b strings.Builder
	for _, f := range d.findings {
		mark := "ok   "
		switch {
		case !f.OK:
			mark = "WRONG"
		case f.Warning:
			mark = "warn "
		}
		fmt.Fprintf(&b, "%s  %s: %s\n", mark, f.Check, f.Detail)
		if f.Do != "" {
			fmt.Fprintf(&b, "       %s\n", f.Do)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
