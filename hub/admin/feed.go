package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"causeway/hub/api"
)

// Limits of a feed.
const (
	feedRing     = 4096    // changes that a watcher may be behind
	feedBytes    = 8 << 20 // of these
	feedEvery    = 500 * time.Millisecond
	feedShare    = 10              // refreshing takes at most this part of one processor
	feedIdle     = 5 * time.Minute // without a watcher, until resume tokens are void
	feedLogSize  = 1000            // entries of a log at the start of a watch
	maxFeedToken = 64
)

// watched is an object of a list that can be watched. Only a change of what shown
// holds is told: load, round trips and counters never stand still.
type watched struct {
	name   string
	object any
	shown  any // nil: object
}

// feed follows one list and keeps its last changes, for any number of watchers. It
// works only while there are any.
type feed struct {
	list func(context.Context) ([]watched, error)
	log  bool // entries are added and nothing else; the list has the newest ones, oldest first

	mu       sync.Mutex
	id       string // of this run of sequence numbers
	seq      uint64 // of the last change
	ring     []api.Change
	bytes    int
	now      map[string]*fed
	order    []string
	filled   bool // now is what it was at some time
	watchers int
	news     chan struct{} // closed with the next change
	stop     context.CancelFunc
	left     time.Time // when the last watcher went
}

// fed is an object as it was told last.
type fed struct {
	shown  []byte
	object any
}

// errFeedBehind says that what a watcher has not seen is forgotten.
var errFeedBehind = errors.New("too far behind")

// join adds a watcher. leave is to be called once.
func (f *feed) join(ctx context.Context) (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == 0 {
		if f.id == "" || time.Since(f.left) > feedIdle {
			f.id, f.seq, f.ring, f.bytes, f.now, f.order, f.filled = rand.Text()[:16], 0, nil, 0, map[string]*fed{}, nil, false
			f.news = make(chan struct{})
		}
		if err := f.refresh(ctx); err != nil {
			return nil, err
		}
		rctx, stop := context.WithCancel(context.Background())
		f.stop = stop
		go f.run(rctx)
	}
	f.watchers++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.watchers--; f.watchers == 0 {
			f.stop()
			f.left = time.Now()
		}
	}, nil
}

func (f *feed) run(ctx context.Context) {
	wait := feedEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		start := time.Now()
		f.mu.Lock()
		if ctx.Err() == nil {
			_ = f.refresh(ctx) // what cannot be read now is told later
		}
		f.mu.Unlock()
		wait = max(feedEvery, feedShare*time.Since(start))
	}
}

// refresh finds out what changed. f.mu is held.
func (f *feed) refresh(ctx context.Context) error {
	items, err := f.list(ctx)
	if err != nil {
		return err
	}
	before := f.seq
	here := make(map[string]bool, len(items))
	for _, it := range items {
		here[it.name] = true
		shown := it.shown
		if shown == nil {
			shown = it.object
		}
		b, err := json.Marshal(shown)
		if err != nil {
			return err
		}
		old := f.now[it.name]
		if old != nil {
			old.object = it.object
			if bytes.Equal(old.shown, b) {
				continue
			}
			old.shown = b
		} else {
			f.now[it.name] = &fed{shown: b, object: it.object}
			f.order = append(f.order, it.name)
		}
		what := api.Changed
		if old == nil {
			what = api.Added
		}
		if f.filled {
			f.tell(what, it.name, it.object)
		}
	}
	kept := f.order[:0]
	for _, name := range f.order {
		if here[name] {
			kept = append(kept, name)
			continue
		}
		delete(f.now, name)
		if !f.log {
			f.tell(api.Removed, name, nil)
		}
	}
	f.order, f.filled = kept, true
	if f.seq != before {
		close(f.news)
		f.news = make(chan struct{})
	}
	return nil
}

// tell appends a change. f.mu is held.
func (f *feed) tell(what, name string, object any) {
	f.seq++
	c := api.Change{Change: what, Name: name}
	if object != nil {
		c.Object, _ = json.Marshal(object)
	}
	f.ring = append(f.ring, c)
	f.bytes += len(c.Name) + len(c.Object)
	for len(f.ring) > feedRing || f.bytes > feedBytes {
		f.bytes -= len(f.ring[0].Name) + len(f.ring[0].Object)
		f.ring[0] = api.Change{}
		f.ring = f.ring[1:]
	}
}

// token names a position.
func (f *feed) token(seq uint64) string { return fmt.Sprintf("%s.%d", f.id, seq) }

// resume finds the position that a token names, if what came since is known.
func (f *feed) resume(token string) (seq uint64, ok bool) {
	if len(token) > maxFeedToken {
		return 0, false
	}
	id, n, _ := strings.Cut(token, ".")
	seq, err := strconv.ParseUint(n, 10, 64)
	f.mu.Lock()
	defer f.mu.Unlock()
	return seq, err == nil && id == f.id && seq <= f.seq && f.seq-seq <= uint64(len(f.ring))
}

// present is the whole list, the last limit of a log, and its position.
func (f *feed) present(limit int) ([]api.Change, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	order := f.order
	if f.log {
		order = order[max(0, len(order)-limit):]
	}
	out := make([]api.Change, 0, len(order))
	for _, name := range order {
		b, err := json.Marshal(f.now[name].object)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, api.Change{Change: api.Present, Name: name, Object: b})
	}
	return out, f.seq, nil
}

// since returns what came after position seq, and what is closed when there is more.
func (f *feed) since(seq uint64) (changes []api.Change, more <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	behind := f.seq - seq
	if behind > uint64(len(f.ring)) {
		return nil, nil, errFeedBehind
	}
	return append([]api.Change(nil), f.ring[uint64(len(f.ring))-behind:]...), f.news, nil
}
