package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority that lives as long as a test.
type CA struct {
	// File is the authority's certificate, in PEM.
	File string

	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// CertFiles names files in PEM: a certificate, its key, and the authority that the
// other side is judged by.
type CertFiles struct {
	CA, Cert, Key string
}

// NewCA makes an authority. Another one than that of a [Cluster] makes certificates
// that it must refuse.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := certificate("test authority")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca := &CA{File: filepath.Join(dir, "ca.pem"), dir: dir, key: key, cert: cert}
	if err := writePEM(ca.File, "CERTIFICATE", der); err != nil {
		t.Fatal(err)
	}
	return ca
}

// Issue makes a certificate that is good for servers at the hosts and for a client
// of the common name, which is the user when authentication is on.
func (ca *CA) Issue(t testing.TB, name string, hosts ...net.IP) CertFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := certificate(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.IPAddresses = hosts
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(ca.dir, fmt.Sprintf("%s-%x", name, template.SerialNumber))
	files := CertFiles{CA: ca.File, Cert: base + ".pem", Key: base + ".key"}
	if err := writePEM(files.Cert, "CERTIFICATE", der); err != nil {
		t.Fatal(err)
	}
	if err := writePEM(files.Key, "PRIVATE KEY", private); err != nil {
		t.Fatal(err)
	}
	return files
}

// Client returns what a client trusts and shows that has the files; without a
// certificate it shows none.
func (f CertFiles) Client() (*tls.Config, error) {
	authority, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	conf := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if f.Cert == "" {
		return conf, nil
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}

func certificate(name string) *x509.Certificate {
	serial := new(big.Int).SetBytes([]byte(rand.Text()[:16]))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func writePEM(name, kind string, der []byte) error {
	return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
