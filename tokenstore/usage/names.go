package usage

// Route is what a recorder knows of a route: its pattern and the scopes that it
// asks for.
type Route struct {
	Pattern string
	Scopes  []string // every one of every alternative
}

// Vocabulary is the routes of one policy, by index. It is immutable; a new policy
// comes with a new one, and what was gathered under the old keeps its names.
type Vocabulary struct {
	routes []Route
}

// maxRoutes bounds the routes whose exercise is followed; those beyond count as
// uses only.
const maxRoutes = 4096

// NewVocabulary returns the vocabulary of a policy with these routes.
func NewVocabulary(routes []Route) *Vocabulary { return &Vocabulary{routes: routes} }

// words is how many words of bits the routes take.
func (v *Vocabulary) words() int { return (min(len(v.routes), maxRoutes) + 63) / 64 }

// kind tells routes and scopes apart, as the first byte of a name in the store.
type kind byte

const (
	kindRoute kind = 'r'
	kindScope kind = 's'
)

type name struct {
	kind kind
	text string
}

// names gives numbers to names, for good: records in the store refer to them.
type names struct {
	list    []name // list[i] has number i+1
	numbers map[name]uint32
	stored  int // how many of them the store has
}

// maxDictionary bounds the names ever seen: a configuration that changes its
// routes all the time must not fill the memory.
const maxDictionary = 1 << 16

func newNames(texts []string) *names {
	n := &names{numbers: make(map[name]uint32, len(texts)), stored: len(texts)}
	for _, text := range texts {
		one := name{kind: kindRoute}
		if text != "" {
			one = name{kind(text[0]), text[1:]}
		}
		n.list = append(n.list, one)
		n.numbers[one] = uint32(len(n.list)) //nolint:gosec // bounded by maxDictionary
	}
	return n
}

// number returns a name's number, a new one where it has none; 0 when there are
// too many.
func (n *names) number(k kind, text string) uint32 {
	one := name{k, text}
	if number, ok := n.numbers[one]; ok {
		return number
	}
	if len(n.list) >= maxDictionary {
		return 0
	}
	n.list = append(n.list, one)
	n.numbers[one] = uint32(len(n.list)) //nolint:gosec // bounded by the line above
	return n.numbers[one]
}

func (n *names) of(number uint32) (name, bool) {
	if number == 0 || int(number) > len(n.list) {
		return name{}, false
	}
	return n.list[number-1], true
}

// unstored returns the names that the store lacks, in its form, and the number of
// the first.
func (n *names) unstored() (first uint64, texts []string) {
	for _, one := range n.list[n.stored:] {
		texts = append(texts, string(rune(one.kind))+one.text)
	}
	return uint64(n.stored) + 1, texts //nolint:gosec // a length
}
