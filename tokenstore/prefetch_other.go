//go:build !amd64 && !arm64

package tokenstore

func prefetch(*entry) {} // the entry comes as it is read

func prefetchBeside(any, *any) {}
