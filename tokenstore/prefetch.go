//go:build amd64 || arm64

package tokenstore

// prefetch asks for the memory of a token and what [roomyToken] holds beside it, 896
// bytes, without waiting for it. What a judgement reads of a token that no cache of the
// processor holds then comes in one delay of the memory in place of four or five. Any
// address will do: what is not there is not fetched.
//
//go:noescape
func prefetch(t *Token)
