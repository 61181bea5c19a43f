package http1

import "sync"

const (
	headBlock  = 4 << 10  // what a request head is read into first
	bodyBlock  = 16 << 10 // answers, bodies, assembled heads
	largeBlock = 64 << 10 // heads that outgrow their block, long copies
)

// block is a piece of memory that is lent to a connection while it has
// something to read or write.
type block struct{ data []byte }

// memory lends blocks and exchanges. It is safe for concurrent use.
type memory struct {
	heads, bodies, large, exchanges sync.Pool
}

// get lends a block of at least size bytes. Its content is arbitrary.
func (m *memory) get(size int) *block {
	pool, size := m.pool(size)
	if pool != nil {
		if b, ok := pool.Get().(*block); ok {
			return b
		}
	}
	return &block{data: make([]byte, size)}
}

// put takes a block back. Nothing may refer to its memory any more.
func (m *memory) put(b *block) {
	if b == nil {
		return
	}
	if pool, size := m.pool(len(b.data)); pool != nil && size == len(b.data) {
		pool.Put(b)
	}
}

func (m *memory) pool(size int) (*sync.Pool, int) {
	switch {
	case size <= headBlock:
		return &m.heads, headBlock
	case size <= bodyBlock:
		return &m.bodies, bodyBlock
	case size <= largeBlock:
		return &m.large, largeBlock
	}
	return nil, size
}

// exchange lends an exchange without a connection.
func (m *memory) exchange() *Exchange {
	if x, ok := m.exchanges.Get().(*Exchange); ok {
		return x
	}
	return new(Exchange)
}
