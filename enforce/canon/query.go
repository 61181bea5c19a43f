package canon

import "bytes"

// LookupQuery finds the parameter name in a raw query. The value is still form-encoded:
// compare it with [EqualFormDecoded].
//
// n counts every parameter that some backend may take for name: whatever its case, with
// '_', '.', ' ' and '-' alike (PHP), behind spaces (PHP), as an array (name[], name[x])
// and in brackets ([name], Express). The value is that of the parameter whose decoded
// name is exactly name; found says that there is one. A rule that reads a parameter
// must see found and n == 1, or what it compares may not be what the upstream uses.
func LookupQuery(query []byte, name string) (value []byte, found bool, n int) {
	for rest, more := query, len(query) > 0; more; {
		var parameter []byte
		parameter, rest, more = bytes.Cut(rest, ampersand)
		key, val, _ := bytes.Cut(parameter, equals)
		if !looksLike(key, name) {
			continue
		}
		n++
		if EqualFormDecoded(key, name) {
			value, found = val, true
		}
	}
	return value, found, n
}

// EqualFormDecoded reports whether an encoded query value is s once '+' and
// percent-encoding are undone. A broken escape equals nothing.
func EqualFormDecoded(value []byte, s string) bool {
	i := 0
	for len(value) > 0 {
		c, n, ok := formByte(value)
		if !ok || i == len(s) || s[i] != c {
			return false
		}
		value = value[n:]
		i++
	}
	return i == len(s)
}

// AppendFormDecoded appends the decoded query value to dst. With a broken escape it
// reports false and returns dst as it was.
func AppendFormDecoded(dst, value []byte) ([]byte, bool) {
	start := len(dst)
	for len(value) > 0 {
		c, n, ok := formByte(value)
		if !ok {
			return dst[:start], false
		}
		dst = append(dst, c)
		value = value[n:]
	}
	return dst, true
}

// looksLike compares folded, and takes an array suffix. Before the name it passes over
// spaces, which PHP drops, and an opening bracket: "[name]" is name to the parser that
// Express uses. Escapes that are broken stand for themselves, as lenient parsers read
// them.
func looksLike(key []byte, name string) bool {
	key = skipBefore(key)
	i := 0
	for len(key) > 0 {
		c, n, _ := formByte(key)
		if i == len(name) {
			return c == '[' || c == ']' || c <= ' '
		}
		if foldTable[c] != foldTable[name[i]] {
			return false
		}
		key = key[n:]
		i++
		if c == ']' { // "[a][b]" is "a[b]" to that parser
			if c, n := formByteOrNone(key); c == '[' {
				key = key[n:]
			}
		}
	}
	return i == len(name)
}

// skipBefore passes over what parsers leave out before a name.
func skipBefore(key []byte) []byte {
	for {
		c, n := formByteOrNone(key)
		if n == 0 || c > ' ' && c != '[' {
			return key
		}
		key = key[n:]
	}
}

// formByteOrNone is formByte for text that may be empty; n is 0 then.
func formByteOrNone(text []byte) (c byte, n int) {
	if len(text) == 0 {
		return 0, 0
	}
	c, n, _ = formByte(text)
	return c, n
}

// formByte decodes the first character of form-encoded text and says how long it was.
func formByte(text []byte) (c byte, n int, ok bool) {
	switch text[0] {
	case '+':
		return ' ', 1, true
	case '%':
		if b, ok := unhex(text[1:]); ok {
			return b, 3, true
		}
		return '%', 1, false
	}
	return text[0], 1, true
}
