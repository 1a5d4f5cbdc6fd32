package relay

// Class is a set of nodes that may talk to the same others: who may talk is decided between classes, never between pairs of
// nodes. All classes of one SetNodes come of one call of NewClasses, or are Everybody and Alone. They must not be
// changed afterwards.
type Class struct {
	number int
	talks  []uint64 // a bit for each class
}

// Everybody, which is also the class of a node that has none, talks to itself, and Alone to the hub alone.
var Everybody, Alone = func() (*Class, *Class) {
	c := NewClasses(2)
	c[0].Allow(c[0])
	return c[0], c[1]
}()

// NewClasses returns so many classes, none of which may talk to any.
func NewClasses(n int) []*Class {
	words := (n + 63) / 64
	all, bits, out := make([]Class, n), make([]uint64, n*words), make([]*Class, n)
	for i := range all {
		all[i] = Class{i, bits[i*words : (i+1)*words : (i+1)*words]}
		out[i] = &all[i]
	}
	return out
}

// Allow lets two classes of one call of NewClasses talk, both ways; or one within itself.
func (c *Class) Allow(d *Class) {
	c.talks[d.number>>6] |= 1 << (d.number & 63)
	d.talks[c.number>>6] |= 1 << (c.number & 63)
}

// Allows reports whether nodes of c and d may talk.
func (c *Class) Allows(d *Class) bool { return c.talks[d.number>>6]>>(d.number&63)&1 != 0 }
