package netns

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNoWalls says that what nftables shall drop is not known to be dropped: our table
// could not be set, and what stands in its place, if anything does, is not that of a plan
// that was applied. No peer's packet may come in or go out until Apply succeeds.
var ErrNoWalls = errors.New("nothing is known to stand between this host and its peers")

// Failure is what of a plan could not be applied.
type Failure struct {
	Kind Kind
	Line string // of the plan, as in Plan.Lines; empty: the kind as a whole
	Err  error
	// Harmless says that nothing of this plan works worse for it.
	Harmless bool
}

// Failures are why Apply or Mend did not do all that it should: each kind of thing,
// and each thing of a kind, is applied although another could not be.
type Failures []Failure

// perKind is how many failures of one kind are named.
const perKind = 3

// Error is one line, however many there are.
func (f Failures) Error() string { return strings.Join(f.Texts(), "; ") }

// Unwrap gives the causes to errors.Is.
func (f Failures) Unwrap() (out []error) {
	for _, x := range f {
		out = append(out, x.Err)
	}
	return out
}

// Texts is a text for each kind, which names the first things of it.
func (f Failures) Texts() (out []string) {
	var kinds []Kind
	for _, x := range f {
		if !slices.Contains(kinds, x.Kind) {
			kinds = append(kinds, x.Kind)
		}
	}
	for _, k := range kinds {
		of := f.Of(k)
		var l []string
		for _, x := range of[:min(len(of), perKind)] {
			l = append(l, x.Err.Error())
		}
		s := string(k) + ": " + strings.Join(l, ", ")
		if more := len(of) - perKind; more > 0 {
			s += fmt.Sprintf(", and %d more", more)
		}
		out = append(out, s)
	}
	return out
}

// Of are those of one kind.
func (f Failures) Of(k Kind) Failures {
	return slices.DeleteFunc(slices.Clone(f), func(x Failure) bool { return x.Kind != k })
}

// Harm is f without what is harmless, and what is.
func (f Failures) Harm() (harm, harmless Failures) {
	for _, x := range f {
		if x.Harmless {
			harmless = append(harmless, x)
		} else {
			harm = append(harm, x)
		}
	}
	return harm, harmless
}

// add notes a failure; nil is none.
func (f *Failures) add(k Kind, line string, err error) {
	if err != nil {
		*f = append(*f, Failure{Kind: k, Line: line, Err: err})
	}
}

// err is nil for none: a nil Failures in an error is not.
func (f Failures) err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}
