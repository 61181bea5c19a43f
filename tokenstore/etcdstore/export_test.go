package etcdstore

import "tokenward/tokenstore"

// DigestText is how a digest stands in keys.
func DigestText(d tokenstore.Digest) string { return text(d) }
