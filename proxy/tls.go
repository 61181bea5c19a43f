package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"tokenward/proxy/http1"
)

// ClientAuth says whether a TLS client has to show a certificate.
type ClientAuth uint8

// The choices. A certificate that is shown is verified in any case.
const (
	ClientAuthNone    ClientAuth = iota // it is not asked
	ClientAuthRequest                   // it is asked, and may have none
	ClientAuthRequire                   // without one there is no connection
)

// ServerTLSFiles name what a listener needs for TLS, all PEM.
type ServerTLSFiles struct {
	CertFile     string // leaf first, then intermediates
	KeyFile      string
	ClientCAFile string // the authorities of client certificates; empty with ClientAuthNone
	ClientAuth   ClientAuth
}

// ServerTLS is the TLS side of a listener: at least TLS 1.2, HTTP/2 and HTTP/1.1.
// A client certificate is a gate at the transport and nothing more: who passed
// it still needs a token, and no token is tied to it.
type ServerTLS struct {
	files   ServerTLSFiles
	current atomic.Pointer[tls.Config]
}

// NewServerTLS reads the files.
func NewServerTLS(files ServerTLSFiles) (*ServerTLS, error) {
	s := &ServerTLS{files: files}
	return s, s.Reload()
}

// Listener returns a listener of TLS connections over l. The handshake is done
// in the connection's own time, not in Accept.
func (s *ServerTLS) Listener(l net.Listener) net.Listener {
	return tls.NewListener(http1.Direct(l), &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: serverProtocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.current.Load(), nil
		},
	})
}

var serverProtocols = []string{"h2", "http/1.1"}

// Reload reads the files again: new connections get what they hold now, those
// that exist go on. On an error everything stays as it was.
func (s *ServerTLS) Reload() error {
	apply, err := s.Read()
	if err != nil {
		return err
	}
	apply()
	return nil
}

// Read reads the files again and returns what puts them in force, so that several
// things can be put in force together or not at all.
func (s *ServerTLS) Read() (apply func(), err error) {
	cert, err := tls.LoadX509KeyPair(s.files.CertFile, s.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s and key %s: %w", s.files.CertFile, s.files.KeyFile, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: serverProtocols}
	if s.files.ClientAuth != ClientAuthNone {
		if c.ClientCAs, err = readCertPool(s.files.ClientCAFile); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if s.files.ClientAuth == ClientAuthRequire {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		// A resumed session would go on with a certificate that was verified under
		// authorities that may be gone.
		c.SessionTicketsDisabled = true
	}
	return func() { s.current.Store(c) }, nil
}

// ClientTLSFiles name what connecting to an upstream by TLS needs, all PEM.
type ClientTLSFiles struct {
	CAFile     string // the authorities of the upstream; empty: the system's
	CertFile   string // shown to an upstream that asks; empty: none
	KeyFile    string
	ServerName string // expected in the upstream's certificate and sent as SNI; empty: the host of its URL
}

// ClientTLS is the TLS side of upstreams. A nil *ClientTLS takes the system's
// roots and shows no certificate.
type ClientTLS struct {
	files   ClientTLSFiles
	current atomic.Pointer[tls.Config]
}

// NewClientTLS reads the files.
func NewClientTLS(files ClientTLSFiles) (*ClientTLS, error) {
	c := &ClientTLS{files: files}
	return c, c.Reload()
}

// Reload is like [ServerTLS.Reload].
func (c *ClientTLS) Reload() error {
	apply, err := c.Read()
	if err != nil {
		return err
	}
	apply()
	return nil
}

// Read is like [ServerTLS.Read].
func (c *ClientTLS) Read() (apply func(), err error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.files.ServerName}
	if c.files.CAFile != "" {
		if config.RootCAs, err = readCertPool(c.files.CAFile); err != nil {
			return nil, err
		}
	}
	if c.files.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read certificate %s and key %s: %w", c.files.CertFile, c.files.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return func() { c.current.Store(config) }, nil
}

// forHost is the configuration in force for one connection.
func (c *ClientTLS) forHost(host string, protocols []string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c != nil {
		config = c.current.Load().Clone()
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	config.NextProtos = protocols
	return config
}

// readCertPool reads the authorities in a PEM file, of which there must be one at
// least: an empty pool would refuse all, or at a careless reader's trust any.
func readCertPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read certificate authorities %s: %w", path, errors.New("there is no certificate in it"))
	}
	return pool, nil
}
