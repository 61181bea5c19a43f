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
// uses only, and the record then says that it lacks some.
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

// names are the numbers that the store gave to names, for good: records in it
// refer to them.
type names struct {
	list    []name // list[i] has number i+1
	numbers map[name]uint32
}

// maxDictionary bounds the names ever seen: a configuration that changes its
// routes all the time must not fill the memory.
const maxDictionary = 1 << 16

func newNames(texts []string) *names {
	n := &names{numbers: make(map[name]uint32, len(texts))}
	for _, text := range texts {
		one := name{kind: kindRoute}
		if text != "" {
			one = name{kind(text[0]), text[1:]}
		}
		n.list = append(n.list, one)
		n.numbers[one] = uint32(len(n.list)) //nolint:gosec // the store is bounded by maxDictionary
	}
	return n
}

// lacks adds to missing the names of a route that have no number.
func (n *names) lacks(r *Route, missing map[name]bool) {
	for one := range r.names() {
		if n.numbers[one] == 0 {
			missing[one] = true
		}
	}
}

// numbered returns the numbers of a route's names, and whether all have one.
func (n *names) numbered(r *Route) (numbers []uint32, all bool) {
	all = true
	for one := range r.names() {
		if number := n.numbers[one]; number != 0 {
			numbers = append(numbers, number)
		} else {
			all = false
		}
	}
	return numbers, all
}

func (r *Route) names() func(func(name) bool) {
	return func(yield func(name) bool) {
		if !yield(name{kindRoute, r.Pattern}) {
			return
		}
		for _, scope := range r.Scopes {
			if !yield(name{kindScope, scope}) {
				return
			}
		}
	}
}

func (n *names) of(number uint32) (name, bool) {
	if number == 0 || int(number) > len(n.list) {
		return name{}, false
	}
	return n.list[number-1], true
}
