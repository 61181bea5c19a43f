package enforce

import (
	"context"
	"errors"

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
	ctx    context.Context //nolint:containedctx // it lives as long as one judgement
	finder ParentFinder
	types  map[string]string
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
		switch {
		case errors.Is(err, ErrNoParent) || err == nil && parent == "":
			continue
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
