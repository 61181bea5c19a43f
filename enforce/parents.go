package enforce

import (
	"context"
	"errors"
	"strconv"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// ErrNoParent says that a resource does not exist, or belongs to nothing.
var ErrNoParent = errors.New("the resource has no parent")

// ParentFinder knows which resource another one belongs to, where the path does
// not say: the account of a card. It returns the parent's id, ErrNoParent, or any
// other error where it could not find out, which refuses the request. It is asked
// only for tokens that have a grant on the parent's type, and may do I/O.
type ParentFinder interface {
	Parent(ctx context.Context, typ string, id []byte) (string, error)
}

// kinship is what a judgement may ask about parents. The zero kinship knows none.
type kinship struct {
	ctx    context.Context // it lives as long as one judgement
	finder ParentFinder
	types  map[string]string
	heard  *[]parentage // is appended to for Explain; nil: nobody wants to know
}

// parentage tells in words what the finder said about one resource.
type parentage struct{ typ, id, said string }

// hears keeps what the finder said. Whoever asks for an explanation may see the token,
// but must not learn whose a resource is of which the token grants nothing.
func (k kinship) hears(t *tokenstore.Token, parentType, typ, id, parent string, err error) {
	said := "it belongs to another " + parentType
	switch {
	case errors.Is(err, ErrNoParent) || err == nil && parent == "":
		said = "it belongs to no " + parentType
	case err != nil:
		said = "it could not be asked which " + parentType + " that is"
	case t.Resources.Allows(parentType, []byte(parent), tokenstore.LevelRead):
		said = "it belongs to " + parentType + ":" + strconv.QuoteToASCII(parent)
	}
	*k.heard = append(*k.heard, parentage{typ, id, said})
}

// judgeParents looks for an alternative whose parent the token grants, after none
// was granted itself. refused is what to answer if there is none.
func (k kinship) judgeParents(either []resource, t *tokenstore.Token, q *canon.Request, v *vars, level tokenstore.Level, refused Reason) (Reason, error) {
	if k.finder == nil {
		return refused, nil
	}
	for i := range either {
		parentType := k.types[either[i].typ]
		if parentType == "" || !hasType(t, parentType) {
			continue
		}
		id, ok := either[i].appendID(nil, t, q, v)
		if !ok || len(id) == 0 || len(id) > tokenstore.MaxGrantID {
			continue
		}
		parent, err := k.finder.Parent(k.ctx, either[i].typ, id)
		if k.heard != nil {
			k.hears(t, parentType, either[i].typ, string(id), parent, err)
		}
		switch {
		case errors.Is(err, ErrNoParent) || err == nil && parent == "":
		case err != nil:
			return ParentUnavailable, err
		case t.Resources.Allows(parentType, []byte(parent), level):
			return Allowed, nil
		case t.Resources.Allows(parentType, []byte(parent), tokenstore.LevelRead):
			refused = LevelTooLow
		}
	}
	return refused, nil
}

func hasType(t *tokenstore.Token, typ string) bool {
	for i := range t.Resources.Grants {
		if t.Resources.Grants[i].Type == typ {
			return true
		}
	}
	return false
}
