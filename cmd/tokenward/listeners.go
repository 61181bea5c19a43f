package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"tokenward/proxy"
)

// bind opens the listeners, so that a taken port is told before anything runs.
func (a *app) bind(ctx context.Context) error {
	var err error
	if a.proxyTLS, err = newServerTLS("proxy.tls", a.cfg.Proxy.TLS); err != nil {
		return err
	}
	if a.adminTLS, err = newServerTLS("admin.tls", a.cfg.Admin.TLS); err != nil {
		return err
	}
	if a.proxyListener, err = listen(ctx, "proxy.listen", a.cfg.Proxy.Listen); err != nil {
		return err
	}
	if from := a.cfg.Proxy.ProxyProtocolFrom; len(from) > 0 {
		a.proxyListener = proxy.NewProxyProtocol(a.proxyListener, from, a.cfg.Proxy.Timeouts.Header, a.guard.Headerless)
	}
	a.proxyListener = secured(a.proxyListener, a.proxyTLS)
	if a.adminListener, err = listen(ctx, "admin.listen", a.cfg.Admin.Listen); err != nil {
		return err
	}
	a.adminListener = secured(a.adminListener, a.adminTLS)
	a.metricsListener, err = listen(ctx, "metrics.listen", a.cfg.Metrics.Listen)
	return err
}

// newServerTLS reads a listener's certificate; nil where it has none.
func newServerTLS(key string, t TLSConfig) (*proxy.ServerTLS, error) {
	if !t.Enabled() {
		return nil, nil // cleartext is no error
	}
	s, err := proxy.NewServerTLS(t.serverTLSFiles())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return s, nil
}

func listen(ctx context.Context, key, address string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w%s", key, err, listenFix(err))
	}
	return ln, nil
}

// listenFix is what to do about an address that cannot be listened on.
func listenFix(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "\nThe port is taken: find by whom with `ss -ltnp`, or choose another"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "\nThis machine does not have the address: `ip address` shows those that it has; leave out the host to listen on all"
	case errors.Is(err, fs.ErrPermission):
		return "\nPorts below 1024 are not for every user: choose a higher one, or give the program CAP_NET_BIND_SERVICE"
	}
	return ""
}

func secured(l net.Listener, t *proxy.ServerTLS) net.Listener {
	if t == nil {
		return l
	}
	return t.Listener(l)
}

func (a *app) closeListeners() error {
	var errs []error
	for _, one := range []net.Listener{a.proxyListener, a.adminListener, a.metricsListener} {
		if one != nil {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}
