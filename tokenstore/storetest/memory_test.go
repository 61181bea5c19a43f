package storetest_test

import (
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	storetest.Run(t, openMemory)
}

func TestFaultlessFaultyStoreKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
		h := openMemory(t, onChange)
		h.Store = &storetest.Faulty{Store: h.Store}
		return h
	})
}

// A function that runs twice must not show.
func TestChangeThatRunsTwiceKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
		h := openMemory(t, onChange)
		h.Store = &storetest.Faulty{Store: h.Store, ChangeFate: func() storetest.Fate { return storetest.Twice }}
		return h
	})
}

func openMemory(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
	m := storetest.NewMemory(onChange)
	return &storetest.Harness{
		Store: m, Pending: m.Pending, Done: m.Done,
		Check: func(t *testing.T) { m.Check(func(fault string) { t.Error(fault) }) },
	}
}
