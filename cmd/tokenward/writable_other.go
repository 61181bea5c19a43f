//go:build !linux

package main

// writable reports no fault: opening the file says it.
func writable(string) error { return nil }
