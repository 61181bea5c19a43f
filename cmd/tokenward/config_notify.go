package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"tokenward/admin/notify"
)

// NotifyConfig configures whom to tell of tokens that are about to end, or were
// revoked.
type NotifyConfig struct {
	// URL is that of a webhook: https, or http on this machine. Empty: nobody is
	// told, and warnings go to the audit log alone.
	URL string `yaml:"url" reload:"no"`
	// SecretFile holds the secret that signs what is sent; with URL, and only with
	// it.
	SecretFile string `yaml:"secret_file" reload:"no"`
	// DaysBefore are the days before a token's end on which it is warned of: each
	// 1 to 365, at most 10 of them. None: no warnings.
	DaysBefore []int `yaml:"days_before" reload:"no"`
}

const (
	maxNotifyDays  = 365
	maxNotifyTimes = 10
)

func defaultNotify() NotifyConfig { return NotifyConfig{DaysBefore: []int{14, 3, 1}} }

// checkNotify applies the rules of the section notify.
func (d *decoder) checkNotify(c *Config) {
	n := &c.Notify
	d.checkFileReference("notify.secret_file", n.SecretFile)
	if d.sound("notify.url") && n.URL != "" {
		if problem := notify.CheckURL(n.URL); problem != "" {
			d.report("notify.url", ruleWebHook, quote(n.URL)+" "+problem, "write the URL of the webhook, or remove it")
		} else if n.SecretFile == "" {
			d.report("notify.url", ruleMissing, "there is no secret to sign what is sent with", "name a file in secret_file: `head -c 32 /dev/urandom | base64 > notify.secret` makes one; the receiver needs it too")
		}
	}
	if n.URL == "" && n.SecretFile != "" {
		d.report("notify.secret_file", ruleMissing, "there is no URL to send to", "write url, or remove secret_file")
	}
	if len(n.DaysBefore) > maxNotifyTimes {
		d.report("notify.days_before", ruleBounds, fmt.Sprintf("there are %d days", len(n.DaysBefore)), fmt.Sprintf("write at most %d", maxNotifyTimes))
	}
	for i, days := range n.DaysBefore {
		path := itemPath("notify.days_before", i)
		switch {
		case !d.sound(path):
		case days < 1 || days > maxNotifyDays:
			d.report(path, ruleBounds, fmt.Sprintf("%d is out of bounds", days), fmt.Sprintf("write 1 to %d", maxNotifyDays))
		case slices.Index(n.DaysBefore, days) < i:
			d.report(path, ruleTwice, fmt.Sprintf("%d stands in the list already", days), "list each day once")
		}
	}
}

// hookSecret looks at the secret of the webhook.
func (f *fileChecker) hookSecret(key, path string) {
	if path == "" || !f.secret(key, path) {
		return
	}
	if _, err := readHookSecret(path); err != nil {
		f.fault(key, quote(path)+" "+err.Error(), fixOr(err, "make one with "+makeSecret(path)+"; the receiver needs it too"))
	}
}

// readHookSecret reads the secret of the webhook, without the white space around
// it.
func readHookSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	if b = bytes.TrimSpace(b); len(b) < notify.MinSecretBytes {
		return nil, fmt.Errorf("holds fewer than %d bytes", notify.MinSecretBytes)
	}
	return b, nil
}
