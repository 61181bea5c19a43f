package fynn_test

import (
	"net/http"
	"testing"

	"tokenward/admin/admintest"
	"tokenward/admin/fynn"
)

func handler(w *admintest.World) http.Handler {
	return admintest.Handler(fynn.New(w.Service, w.Gate(), w.Log))
}

func TestContract(t *testing.T) { admintest.Play(t, handler) }
