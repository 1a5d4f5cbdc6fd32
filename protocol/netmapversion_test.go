package protocol

import "testing"

func TestNetmapVersionOrder(t *testing.T) {
	ordered := []NetmapVersion{{1, 1, 0}, {1, 1, 1}, {1, 2, 0}, {1, 2, 9}, {1, 3, 1}, {2, 1, 0}}
	for i, v := range ordered {
		for j, w := range ordered {
			if v.Less(w) != (i < j) {
				t.Errorf("%v.Less(%v) = %v", v, w, v.Less(w))
			}
		}
	}
}
