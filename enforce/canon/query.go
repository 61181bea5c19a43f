package canon

import "bytes"

// LookupQuery finds the parameter name in a raw query. The value is still form-encoded: compare it with [EqualFormDecoded].
//
// n counts every parameter that some backend may take for name: whatever its case, with '_', '.', ' ' and '-' alike (PHP), and as an
// array (name[], name[x]). The value is that of the parameter whose decoded name is exactly name; found says that there is one. A rule that
// reads a parameter must see found and n == 1, or what it compares may not be what the upstream uses.
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

// EqualFormDecoded reports whether an encoded query value is s once '+' and percent-encoding are undone. A broken escape equals nothing.
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

// AppendFormDecoded appends the decoded query value to dst. With a broken escape it reports false and returns dst as it was.
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

// looksLike compares folded, and takes an array suffix. Escapes that are broken stand for themselves, as lenient parsers read them.
func looksLike(key []byte, name string) bool {
	i := 0
	for len(key) > 0 {
		c, n, _ := formByte(key)
		if i == len(name) {
			return c == '[' || c == 0
		}
		if foldTable[c] != foldTable[name[i]] {
			return false
		}
		key = key[n:]
		i++
	}
	return i == len(name)
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
