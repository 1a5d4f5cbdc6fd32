package inventory

import (
	"cmp"
	"slices"
	"time"
)

// A history is what the stream has of one node, as far as its length goes: what passed by
// since the start, in pieces, so that nobody has to read the messages to weigh them. To read
// them costs the embedded server 8 MB for each block of the stream that they lie in.
type history struct {
	whole    bool // nothing of the node is older than what is here
	fresh    int  // bytes since it was looked at
	subjects map[string][]piece
}

// piece is some messages of one subject, one after the other.
type piece struct {
	last     uint64    // sequence of the newest
	at       time.Time // of the newest
	messages int
	bytes    int
}

// A piece ends with either. What is counted of a subject is right but for one of them.
const (
	pieceBytes    = 256 << 10
	pieceMessages = 16
)

// add takes a message of a subject, newer than all before.
func (h *history) add(subject string, seq uint64, at time.Time, bytes int) {
	if h.subjects == nil {
		h.subjects = map[string][]piece{}
	}
	l := h.subjects[subject]
	if n := len(l); n > 0 && l[n-1].messages < pieceMessages && l[n-1].bytes+bytes <= pieceBytes {
		l[n-1] = piece{seq, at, l[n-1].messages + 1, l[n-1].bytes + bytes}
	} else {
		l = append(l, piece{seq, at, 1, bytes})
	}
	// What the stream's own limits have taken out.
	messages := 0
	for _, p := range l {
		messages += p.messages
	}
	for len(l) > 1 && (messages-l[0].messages >= maxPerSubject || at.Sub(l[0].at) > maxAge) {
		messages -= l[0].messages
		l = slices.Delete(l, 0, 1)
	}
	h.subjects[subject] = l
}

// beyond returns the sequence up to which the oldest messages are more than share allows, and
// the subjects that have such; 0: none are.
func (h *history) beyond(share int) (up uint64, subjects []string) {
	var all []piece
	for _, l := range h.subjects {
		all = append(all, l...)
	}
	slices.SortFunc(all, func(x, y piece) int { return cmp.Compare(y.last, x.last) })
	sum := 0
	i := slices.IndexFunc(all, func(p piece) bool {
		sum += p.bytes
		return sum > share
	})
	if i < 0 {
		return 0, nil
	}
	up = all[i].last
	for subject, l := range h.subjects {
		if l[0].last <= up {
			subjects = append(subjects, subject)
		}
	}
	return up, subjects
}

// cut forgets what is no newer than seq: it is not in the stream any more.
func (h *history) cut(seq uint64) {
	for subject, l := range h.subjects {
		if l = slices.DeleteFunc(l, func(p piece) bool { return p.last <= seq }); len(l) > 0 {
			h.subjects[subject] = l
		} else {
			delete(h.subjects, subject)
		}
	}
}
