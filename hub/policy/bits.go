package policy

import (
	"iter"
	"math/bits"
)

// bitset is a set of small numbers.
type bitset []uint64

func newBits(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) set(i int) { b[i/64] |= 1 << (i % 64) }

// both yields what is in b and in c, which are for the same numbers, in order.
func (b bitset) both(c bitset) iter.Seq[int] {
	return func(yield func(int) bool) {
		for w := range b {
			for x := b[w] & c[w]; x != 0; x &= x - 1 {
				if !yield(w*64 + bits.TrailingZeros64(x)) {
					return
				}
			}
		}
	}
}

func (b bitset) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }

// add adds what is in c.
func (b bitset) add(c bitset) { b.addBoth(c, c) }

// addBoth adds what is in c and in d.
func (b bitset) addBoth(c, d bitset) {
	for w := range b {
		b[w] |= c[w] & d[w]
	}
}
