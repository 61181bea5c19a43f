package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"tokenward/tokenstore"
)

// checkFiles looks at the files that the configuration names: whether they are
// there, whether others can read the secret ones, whether certificate and key
// belong together at now. Faults keep a server from starting or from being
// safe, warnings do not. Files are only read; the store is not opened.
func (c *Config) checkFiles(now time.Time) (faults, warnings []configFault) {
	f := fileChecker{now: now}
	f.certificate("proxy.tls", c.Proxy.TLS)
	f.certificate("admin.tls", c.Admin.TLS)
	f.authorities("proxy.tls.client_ca_file", c.Proxy.TLS.ClientCAFile)
	f.authorities("admin.tls.client_ca_file", c.Admin.TLS.ClientCAFile)
	f.authorities("proxy.upstream_tls.ca_file", c.Proxy.UpstreamTLS.CAFile)
	f.certificate("proxy.upstream_tls", TLSConfig{CertFile: c.Proxy.UpstreamTLS.CertFile, KeyFile: c.Proxy.UpstreamTLS.KeyFile})
	f.peppers(c.TokenStore.PepperFiles)
	for i, path := range c.TokenStore.ImportKeyFiles {
		f.secret(itemPath("tokenstore.import_key_files", i), path)
	}
	f.signingKey("audit.signing_key_file", c.Audit.SigningKeyFile)
	if path := c.Admin.Leaks.KeysFile; path != "" {
		if _, err := readLeakKeys(path); err != nil {
			f.fault("admin.leaks.keys_file", err.Error(), fixOr(err, "get it from https://api.github.com/meta/public_keys/secret_scanning"))
		}
	}
	f.hookSecret("notify.secret_file", c.Notify.SecretFile)
	for i, path := range c.Proxy.Identity.SigningKeyFiles {
		f.signingKey(itemPath("proxy.identity.signing_key_files", i), path)
	}
	if e := &c.TokenStore.Etcd; e.Enabled() {
		f.authorities("tokenstore.etcd.tls.ca_file", e.TLS.CAFile)
		f.certificate("tokenstore.etcd.tls", TLSConfig{CertFile: e.TLS.CertFile, KeyFile: e.TLS.KeyFile})
		if e.PasswordFile != "" {
			f.secret("tokenstore.etcd.password_file", e.PasswordFile)
		}
	}
	f.folder("tokenstore.path", c.TokenStore.Path)
	f.folder("audit.path", c.Audit.Path)
	return f.faults, f.warnings
}

// checkWritable looks at whether this user can write what a server writes. It
// belongs to `check` alone: a server learns it by opening the files, and a reload,
// which opens none, must not fail because a disk does.
func (c *Config) checkWritable() (faults, warnings []configFault) {
	f := fileChecker{}
	if e := &c.TokenStore.Etcd; !e.Enabled() || e.Mirror == "full" {
		f.writable("tokenstore.path", c.TokenStore.Path)
	}
	f.writable("audit.path", c.Audit.Path)
	if folder := filepath.Dir(c.Audit.Path); len(f.faults) == 0 && writable(folder) != nil {
		f.warn("audit.path", "this user cannot write in the folder "+quote(folder)+", where the log begins a new file whenever one has grown to 64 MiB", "give the folder to the user that the server runs as, with `chown`")
	}
	return f.faults, f.warnings
}

type fileChecker struct {
	now              time.Time
	faults, warnings []configFault
}

func (f *fileChecker) fault(key, problem, fix string) {
	f.faults = append(f.faults, configFault{Key: key, Rule: ruleNamedFile, Problem: problem, Fix: fix})
}

func (f *fileChecker) warn(key, problem, fix string) {
	f.warnings = append(f.warnings, configFault{Key: key, Rule: ruleNamedFile, Problem: problem, Fix: fix})
}

func (f *fileChecker) certificate(section string, t TLSConfig) {
	if !t.Enabled() {
		return
	}
	key := section + ".key_file"
	_, certThere := f.regular(section+".cert_file", t.CertFile)
	if keyThere := f.secret(key, t.KeyFile); !certThere || !keyThere {
		return
	}
	certText, certRead := f.read(section+".cert_file", t.CertFile)
	keyText, keyRead := f.read(key, t.KeyFile)
	if !certRead || !keyRead {
		return
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		f.fault(section, fmt.Sprintf("%s and %s do not belong together: %v", quote(t.CertFile), quote(t.KeyFile), err), "write PEM files, the server's own certificate first, and the key that belongs to it")
		return
	}
	leaf := pair.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			f.fault(section+".cert_file", fmt.Sprintf("the certificate cannot be read: %v", err), "write a PEM file with an X.509 certificate")
			return
		}
	}
	const soon = 14 * 24 * time.Hour
	switch {
	case f.now.After(leaf.NotAfter):
		f.warn(section+".cert_file", "the certificate ended on "+leaf.NotAfter.UTC().Format(time.DateOnly), "renew it: clients refuse it")
	case f.now.Before(leaf.NotBefore):
		f.warn(section+".cert_file", "the certificate is valid only from "+leaf.NotBefore.UTC().Format(time.DateOnly), "is the clock right?")
	case f.now.Add(soon).After(leaf.NotAfter):
		f.warn(section+".cert_file", "the certificate ends on "+leaf.NotAfter.UTC().Format(time.DateOnly), "renew it")
	}
}

// authorities looks at a PEM file with certificates of authorities.
func (f *fileChecker) authorities(key, path string) {
	if path == "" {
		return
	}
	if _, ok := f.regular(key, path); !ok {
		return
	}
	data, ok := f.read(key, path)
	if !ok {
		return
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		f.fault(key, "there is no certificate in "+quote(path), "write a PEM file with the certificates of the authorities")
	}
}

func (f *fileChecker) peppers(paths []string) {
	var contents [][]byte
	for i, path := range paths {
		key := itemPath("tokenstore.pepper_files", i)
		if !f.secret(key, path) {
			continue
		}
		data, ok := f.read(key, path)
		if !ok {
			continue
		}
		if _, err := tokenstore.NewPeppers(data); err != nil {
			f.fault(key, fmt.Sprintf("%s holds fewer than %d bytes", quote(path), tokenstore.MinPepperBytes), "a store that was made with a pepper needs that one: put it back; for a new store, make one with "+makeSecret(path))
			continue
		}
		contents = append(contents, data)
	}
	if _, err := tokenstore.NewPeppers(contents...); err != nil {
		f.fault("tokenstore.pepper_files", "two of the files hold the same pepper", "list each pepper once")
	}
}

func (f *fileChecker) signingKey(key, path string) {
	if path == "" || !f.secret(key, path) {
		return
	}
	if _, err := readSigningKey(path); err != nil {
		f.fault(key, err.Error(), fixOr(err, "put the key back, or make one with `openssl genpkey -algorithm ed25519 -out "+shellWord(path)+"`"))
	}
}

// makeSecret is the command that makes a file with a secret which nobody else can read.
func makeSecret(path string) string {
	return "`(umask 077; head -c 32 /dev/urandom | base64 > " + shellWord(path) + ")`"
}

// fixOr is what to do about a file that cannot be read because of who asks, or else
// otherwise.
func fixOr(err error, otherwise string) string {
	if errors.Is(err, fs.ErrPermission) {
		return "give it to the user that the server runs as, with `chown`, or run this as that user"
	}
	return otherwise
}

// read is what the file at path holds, if this user can read it.
func (f *fileChecker) read(key, path string) ([]byte, bool) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		f.fault(key, quote(path)+" "+fileProblem(err).Error(), fixOr(err, "put the file back, or correct the path"))
		return nil, false
	}
	return data, true
}

// regular reports whether there is a file to read at path.
func (f *fileChecker) regular(key, path string) (fs.FileInfo, bool) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		f.fault(key, quote(path)+" "+fileProblem(err).Error(), fixOr(err, "correct the path, or put the file there; paths are relative to "+workingDirectory()))
		return nil, false
	case !info.Mode().IsRegular():
		f.fault(key, quote(path)+" is "+fileKind(info.Mode())+", not a regular file", "correct the path")
		return nil, false
	}
	return info, true
}

// secret is regular for a file that only the server should be able to read.
// The group may, since Kubernetes gives secrets to a pod by group.
func (f *fileChecker) secret(key, path string) bool {
	info, ok := f.regular(key, path)
	if !ok {
		return false
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o007 != 0:
		f.fault(key, fmt.Sprintf("everybody on this machine can reach %s (mode %04o)", quote(path), mode), "run `chmod 600 "+shellWord(path)+"`; if others could read it, make a new one")
	case mode&0o020 != 0:
		f.fault(key, fmt.Sprintf("its group can write %s (mode %04o)", quote(path), mode), "run `chmod 600 "+shellWord(path)+"`")
	case mode&0o040 != 0:
		f.warn(key, fmt.Sprintf("its group can read %s (mode %04o)", quote(path), mode), "run `chmod 600 "+shellWord(path)+"` unless only the server is in that group")
	}
	return true
}

// folder makes sure that the file at path can be made or found.
func (f *fileChecker) folder(key, path string) {
	parent := filepath.Dir(path)
	info, err := os.Stat(parent)
	switch {
	case err != nil:
		f.fault(key, quote(parent)+" "+fileProblem(err).Error(), fixOr(err, "make the folder, or correct the path; paths are relative to "+workingDirectory()))
		return
	case !info.IsDir():
		f.fault(key, quote(parent)+" is "+fileKind(info.Mode())+", not a folder", "correct the path")
		return
	}
	switch file, err := os.Stat(path); {
	case err != nil: // it will be made, or opening it says why not
	case !file.Mode().IsRegular():
		f.fault(key, quote(path)+" is "+fileKind(file.Mode())+", not a regular file", "correct the path")
	case file.Mode().Perm()&0o022 != 0:
		f.warn(key, fmt.Sprintf("others can write to %s (mode %04o)", quote(path), file.Mode().Perm()), "run `chmod go-w "+shellWord(path)+"`, and find out whether somebody did")
	}
	if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		f.warn(key, "everybody on this machine can write to the folder "+quote(parent), "keep the file in a folder of the server's own")
	}
}

// writable makes sure that the file at path can be written, or made where it is
// not there yet.
func (f *fileChecker) writable(key, path string) {
	if !exists(path) {
		path = filepath.Dir(path)
	}
	switch err := writable(path); {
	case errors.Is(err, fs.ErrPermission):
		f.fault(key, "this user cannot write "+quote(path), "check as the user that the server runs as, or change the owner with `chown`")
	case errors.Is(err, syscall.EROFS):
		f.fault(key, quote(path)+" lies on a file system that is mounted read-only", "mount it for writing, or name another place")
	}
}

func workingDirectory() string {
	dir, err := os.Getwd()
	if err != nil {
		return "the working directory"
	}
	return dir
}
