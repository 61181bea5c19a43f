package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"reflect"
	"slices"
)

// loadConfig reads and checks a configuration file, which must be a regular
// file. The error is a *configError that prints every fault of the file. It
// does not look at the files that the configuration names: see
// [Config.checkFiles].
func loadConfig(path string) (*Config, error) {
	data, err := readConfigFile(path)
	if err != nil {
		f := configFault{Rule: ruleFile, Problem: err.Error(), Fix: "give the path of a configuration file; config.example.yaml is one to start from"}
		return nil, newConfigError(path, nil, []configFault{f})
	}
	return parseConfig(path, data)
}

// readConfigFile reads at most one byte more than a configuration may have, so
// that parseConfig can tell.
func readConfigFile(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fileProblem(err)
	}
	return data, nil
}

// openRegular opens a regular file, and nothing that would be waited for, such as a
// named pipe.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path) // before opening, which already waits
	if err != nil {
		return nil, fileProblem(err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is %s, not a regular file", fileKind(info.Mode()))
	}
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fileProblem(err)
	}
	return f, nil
}

// fileProblem is the cause without the path, which is printed before it.
func fileProblem(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return fmt.Errorf("cannot be read: %w", err)
}

func fileKind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

// parseConfig reads a configuration from memory; name stands for it in errors.
func parseConfig(name string, data []byte) (*Config, error) {
	c := defaultConfig()
	root, src := readYAML(data)
	d := &decoder{places: make(map[string]position), broken: make(map[string]bool)}
	if root != nil {
		d.mapping("", root, reflect.ValueOf(c).Elem())
		checkConfig(c, d)
	}
	faults := src.faults
	known := make(map[position]bool, len(faults))
	for _, f := range faults {
		known[position{line: f.Line, column: f.Column}] = true
	}
	for _, f := range d.faults {
		// What is wrong with a value that is not plain YAML follows from that.
		if f.Line == 0 || !known[position{line: f.Line, column: f.Column}] {
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		e := newConfigError(name, src.lines, faults)
		e.config, e.decoder = c, d
		return nil, e
	}
	return c, nil
}

// restartNeeded lists the keys in which the two configurations differ and that
// only a new start applies.
func restartNeeded(running, wanted *Config) []string {
	var keys []string
	for k := range configKeys() {
		if k.reload == "no" && !reflect.DeepEqual(k.in(running).Interface(), k.in(wanted).Interface()) {
			keys = append(keys, k.path)
		}
	}
	return keys
}

// configKey is one key that has a value of its own.
type configKey struct {
	path   string
	reload string // yes or no
	index  []int
}

func (k configKey) in(c *Config) reflect.Value {
	return reflect.ValueOf(c).Elem().FieldByIndex(k.index)
}

// configKeys yields each key in the order of the struct; keys inside of routes
// are part of the value of routes.
func configKeys() iter.Seq[configKey] {
	var walk func(path string, index []int, t reflect.Type, yield func(configKey) bool) bool
	walk = func(path string, index []int, t reflect.Type, yield func(configKey) bool) bool {
		for i := range t.NumField() {
			f := t.Field(i)
			key := joinPath(path, f.Tag.Get("yaml"))
			at := append(slices.Clone(index), i)
			var more bool
			if reload, leaf := f.Tag.Lookup("reload"); leaf {
				more = yield(configKey{key, reload, at})
			} else {
				more = walk(key, at, f.Type, yield)
			}
			if !more {
				return false
			}
		}
		return true
	}
	return func(yield func(configKey) bool) { walk("", nil, reflect.TypeFor[Config](), yield) }
}
