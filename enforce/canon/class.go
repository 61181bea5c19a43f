package canon

// class is a set of grammar classes that a byte belongs to. Tests over a whole text AND
// the classes of its bytes together, which costs about one cycle a byte.
type class uint8

const (
	classToken      class = 1 << iota // tchar, RFC 9110 section 5.6.2
	classMethod                       // what we take for a method: upper-case letters, digits, '-', '_'
	classUnreserved                   // RFC 3986 section 2.3
	classPath                         // pchar and '/', but for '%' and ';', which need a closer look
	classQuery                        // RFC 3986 characters but for '#', '%' and ';'; '[' and ']' are let through, as all clients send them
	classLoose                        // printable ASCII outside RFC 3986, left plain in queries by browsers
	classHost                         // lower- and upper-case letters, digits, '-', '.', '_'
	classSecret                       // visible ASCII but for the comma, see Credential
)

var classes = makeClasses()

func makeClasses() (t [256]class) {
	mark := func(cl class, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= cl
		}
	}
	const (
		lower = "abcdefghijklmnopqrstuvwxyz"
		upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
		alnum = lower + upper + "0123456789"
	)
	mark(classToken, alnum+"!#$%&'*+-.^_`|~")
	mark(classMethod, upper+"0123456789-_")
	mark(classUnreserved, alnum+"-._~")
	mark(classPath, alnum+"-._~!$&'()*+,=:@/")
	mark(classQuery, alnum+"-._~!$&'()*+,=:@/?[]")
	mark(classLoose, "\"<>\\^`{|}")
	mark(classHost, alnum+"-._")
	for c := byte(0x21); c < 0x7f; c++ {
		t[c] |= classSecret
	}
	t[','] &^= classSecret
	return t
}

// is reports whether every byte of text is in cl; true for an empty text.
func is(text []byte, cl class) bool {
	acc := ^class(0)
	for _, c := range text {
		acc &= classes[c]
	}
	return acc&cl != 0
}

// lower is ASCII lower case. Bytes from 0x80 on stand as they are: Unicode folding
// would equate names that no backend equates.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// equalLower reports whether text is want but for ASCII case; want is in lower case.
func equalLower(text []byte, want string) bool {
	if len(text) != len(want) {
		return false
	}
	for i, c := range text {
		if lower(c) != want[i] {
			return false
		}
	}
	return true
}

// unhex reads the two hex digits at text[0] and text[1].
func unhex(text []byte) (byte, bool) {
	if len(text) < 2 {
		return 0, false
	}
	hi, lo := hexValues[text[0]], hexValues[text[1]]
	return hi<<4 | lo&0x0f, (hi|lo)&0x80 == 0
}

// hexValues holds the value of each hex digit and 0x80 for all else.
var hexValues = makeHexValues()

func makeHexValues() (t [256]byte) {
	for i := range t {
		t[i] = 0x80
	}
	for i := range byte(10) {
		t['0'+i] = i
	}
	for i := range byte(6) {
		t['a'+i] = 10 + i
		t['A'+i] = 10 + i
	}
	return t
}
