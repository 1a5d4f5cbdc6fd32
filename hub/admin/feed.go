package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	group  string // what it is looked at anew by; "": its name
	object any
	shown  any       // nil: object
	until  time.Time // when it becomes another one by itself; zero: never
}

// source says what of a feed's list to look at anew.
type source interface {
	// take returns the groups in which something may have changed since it was asked last; all: anywhere.
	take() (groups map[string]bool, all bool)
	leave()
}

// feed follows one list and keeps its last changes, for any number of watchers. It
// works only while there are any, and then only when its source tells of a change: what that is about is looked at anew.
type feed struct {
	// list returns the objects of some groups, or of the whole list where groups is nil.
	list func(ctx context.Context, groups map[string]bool) ([]watched, error)
	// follow returns a source, which from then on has wake take one when it has something.
	follow func(wake chan<- struct{}) source
	log    bool // entries are added and nothing else; the list has the newest ones, oldest first

	mu       sync.Mutex
	id       string // of this run of sequence numbers
	seq      uint64 // of the last change
	ring     []api.Change
	bytes    int
	now      map[string]*fed
	groups   map[string][]string // names by group
	order    []*fed              // those that are gone among them
	gone     int                 // in order
	filled   bool                // now is what it was at some time
	missed   bool                // a look failed
	timed    bool                // there may be objects that become others by themselves
	until    time.Time           // the earliest of all objects; zero: none has one
	watchers int
	news     chan struct{} // closed with the next change
	stop     context.CancelFunc
	left     time.Time // when the last watcher went
}

// fed is an object as it was told last.
type fed struct {
	name, group string
	shown       []byte
	object      any
	until       time.Time
	gone        bool
}

// errFeedBehind says that what a watcher has not seen is forgotten.
var errFeedBehind = errors.New("too far behind")

// join adds a watcher. leave is to be called once.
func (f *feed) join(ctx context.Context) (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == 0 {
		if f.id == "" || time.Since(f.left) > feedIdle {
			f.clear()
		}
		wake := make(chan struct{}, 1)
		src := f.follow(wake) // before the look, or what changes between is not told
		if err := f.refresh(ctx, nil); err != nil {
			src.leave()
			return nil, err
		}
		rctx, stop := context.WithCancel(context.Background())
		f.stop = stop
		go f.run(rctx, wake, src)
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

// clear begins a new run of sequence numbers, in which nothing is known.
func (f *feed) clear() {
	f.id, f.seq, f.ring, f.bytes = rand.Text()[:16], 0, nil, 0
	f.now, f.groups, f.order, f.gone, f.filled = map[string]*fed{}, map[string][]string{}, nil, 0, false
	f.news = make(chan struct{})
}

// run looks at what changed when it did, and then rests for feedEvery: what changes meanwhile is told together.
func (f *feed) run(ctx context.Context, wake <-chan struct{}, src source) {
	defer src.leave()
	for {
		f.mu.Lock()
		rest := time.Hour
		if f.missed {
			rest = 0
		} else if !f.until.IsZero() {
			rest = max(0, time.Until(f.until))
		}
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(rest):
		}
		start := time.Now()
		f.look(ctx, src)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(feedEvery, feedShare*time.Since(start))):
		}
	}
}

// look finds out what became of what src tells of, and of what changes by itself.
func (f *feed) look(ctx context.Context, src source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	groups, all := src.take()
	if all = all || f.missed; all {
		groups = nil
	} else {
		groups = f.expired(groups, time.Now())
		if len(groups) == 0 {
			return
		}
	}
	f.missed = f.refresh(ctx, groups) != nil // what cannot be read now is told later
}

// expired adds to groups those in which something became another by itself. f.mu is held.
func (f *feed) expired(groups map[string]bool, now time.Time) map[string]bool {
	if f.until.IsZero() || now.Before(f.until) {
		return groups
	}
	if groups == nil {
		groups = map[string]bool{}
	}
	for _, o := range f.now {
		if !o.until.IsZero() && !now.Before(o.until) {
			groups[o.group] = true
		}
	}
	return groups
}

// refresh finds out what changed in groups; nil: anywhere. f.mu is held.
func (f *feed) refresh(ctx context.Context, groups map[string]bool) error {
	items, err := f.list(ctx, groups)
	if err != nil {
		return err
	}
	before := f.seq
	here := make(map[string]bool, len(items))
	for _, it := range items {
		here[it.name] = true
		if err := f.put(it); err != nil {
			return err
		}
	}
	if groups == nil {
		for _, o := range f.order {
			f.drop(o, here)
		}
	}
	for g := range groups {
		for _, name := range slices.Clone(f.groups[g]) {
			f.drop(f.now[name], here)
		}
	}
	f.tidy()
	f.filled = true
	if f.seq != before {
		close(f.news)
		f.news = make(chan struct{})
	}
	return nil
}

// put takes an object as it is now. f.mu is held.
func (f *feed) put(it watched) error {
	shown := it.shown
	if shown == nil {
		shown = it.object
	}
	b, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	if it.group == "" {
		it.group = it.name
	}
	what, old := api.Changed, f.now[it.name]
	if old == nil {
		what, old = api.Added, &fed{name: it.name, group: it.group}
		f.now[it.name] = old
		f.order = append(f.order, old)
		f.groups[it.group] = append(f.groups[it.group], it.name)
	}
	old.object, old.until = it.object, it.until
	f.timed = f.timed || !it.until.IsZero()
	if what == api.Changed && bytes.Equal(old.shown, b) {
		return nil
	}
	old.shown = b
	if f.filled {
		f.tell(what, it.name, it.object)
	}
	return nil
}

// drop takes o out unless it is here. f.mu is held.
func (f *feed) drop(o *fed, here map[string]bool) {
	if o == nil || o.gone || here[o.name] {
		return
	}
	o.gone = true
	f.gone++
	delete(f.now, o.name)
	if left := slices.DeleteFunc(f.groups[o.group], func(name string) bool { return name == o.name }); len(left) > 0 {
		f.groups[o.group] = left
	} else {
		delete(f.groups, o.group)
	}
	if !f.log {
		f.tell(api.Removed, o.name, nil)
	}
}

// tidy forgets what is gone where that is much, and finds out what changes next by itself. f.mu is held.
func (f *feed) tidy() {
	if f.gone > len(f.now) {
		f.order, f.gone = slices.DeleteFunc(f.order, func(o *fed) bool { return o.gone }), 0
	}
	if !f.timed {
		return
	}
	f.until = time.Time{}
	for _, o := range f.now {
		if !o.until.IsZero() && (f.until.IsZero() || o.until.Before(f.until)) {
			f.until = o.until
		}
	}
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
	skip := 0
	if f.log {
		skip = max(0, len(f.now)-limit)
	}
	out := make([]api.Change, 0, len(f.now)-skip)
	for _, o := range f.order {
		if o.gone {
			continue
		}
		if skip--; skip >= 0 {
			continue
		}
		b, err := json.Marshal(o.object)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, api.Change{Change: api.Present, Name: o.name, Object: b})
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
