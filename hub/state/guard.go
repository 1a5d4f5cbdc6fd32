package state

// guarded is an ObjectKind whose objects may have to stay as they are for a time.
type guarded interface {
	// Guard says what forbids for now that an object of the kind is put or deleted. It is asked where that is decided.
	Guard(st *State) error
}

// undeclared is an ObjectKind that nobody declares: its objects follow from decisions about others.
type undeclared interface {
	Hidden()
}

// guard asks the kind of an object that is about to change.
func (s *State) guard(kind string) error {
	if k, ok := objectKinds[kind].(guarded); ok && !s.folding {
		return k.Guard(s)
	}
	return nil
}

// Hidden reports whether nobody declares objects of a kind.
func Hidden(kind string) bool {
	_, yes := objectKinds[kind].(undeclared)
	return yes
}
