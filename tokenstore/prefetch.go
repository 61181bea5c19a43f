//go:build amd64 || arm64

package tokenstore

// prefetch asks for the 1,024 bytes of an entry without waiting for them. What a judgement
// reads of a token that no cache of the processor holds then comes in one delay of the
// memory in place of four or five. Any address will do: what is not there is not fetched.
//
//go:noescape
func prefetch(e *entry)

// prefetchBeside asks for the first 128 bytes of what the pointer in limits leads to, and
// of what use does.
//
//go:noescape
func prefetchBeside(limits any, use *any)
