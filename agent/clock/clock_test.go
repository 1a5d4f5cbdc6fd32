package clock

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const (
	day    = 24 * time.Hour
	maxAge = 7 * day
	stand  = maxAge / 2
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// host is one whose clocks a test turns.
type host struct {
	c    *Clock
	real time.Duration // gone by
	set  time.Duration // what the wall clock is wrong by
	id   string
	up   time.Duration // real at boot
}

func newHost() *host {
	h := &host{id: "a"}
	h.restart(State{})
	h.c.Word()
	return h
}

func (h *host) wall() time.Time { return start.Add(h.real + h.set) }
func (h *host) boot() Boot      { return Boot{h.id, h.real - h.up + time.Hour} }
func (h *host) restart(s State) { h.c = New(h.wall, h.boot, s, start.Add(-30*day)) }

// run lets time go by, with the agent looking now and then.
func (h *host) run(d time.Duration) time.Time {
	for d > 0 {
		step := min(d, time.Hour)
		h.real, d = h.real+step, d-step
		h.c.Now(stand)
	}
	return h.c.Now(stand)
}

// off is a host that is off, and boots with its wall clock wrong by set.
func (h *host) off(d, set time.Duration) {
	s := h.c.State()
	h.real += d
	h.set, h.id, h.up = set, h.id+"b", h.real+time.Hour-time.Minute
	h.restart(s)
}

// age is how old what a hub stood by at the start is.
func (h *host) age() time.Duration { return h.c.Now(stand).Sub(start).Round(time.Hour) }

func TestStepsOfTheClock(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(h *host)
		age  time.Duration
		note string
	}{
		"nothing":                      {func(h *host) { h.run(3 * day) }, 3 * day, ""},
		"ten years back":               {func(h *host) { h.set = -3650 * day; h.run(8 * day) }, 8 * day, "was set back by 87600h0m0s"},
		"back, restarted":              {func(h *host) { h.set = -3650 * day; h.run(3 * day); h.restart(h.c.State()); h.run(5 * day) }, 8 * day, "was set back"},
		"back in many small steps":     {func(h *host) { each(8*24, func(int) { h.set -= 50 * time.Second; h.run(time.Hour) }) }, 8 * day, "set back"},
		"ten days ahead":               {func(h *host) { h.set = 10 * day; h.run(time.Hour) }, time.Hour, "set ahead by 240h0m0s"},
		"ahead, set right":             {func(h *host) { h.set = 10 * day; h.run(3 * day); h.set = 0; h.run(6 * day) }, 9 * day, ""},
		"ahead for half of max_age":    {func(h *host) { h.set = 10 * day; h.run(stand + 2*time.Hour) }, 10*day + stand + 2*time.Hour, ""},
		"ahead, and again":             {func(h *host) { h.set = 10 * day; h.run(3 * day); h.set = 20 * day; h.run(3 * day) }, 6 * day, "set ahead by 480h0m0s"},
		"ahead, then back":             {func(h *host) { h.set = 10 * day; h.run(day); h.set = -10 * day; h.run(day) }, 2 * day, "set back by 240h0m0s"},
		"ahead, restarted":             {func(h *host) { h.set = 10 * day; h.run(day); h.restart(h.c.State()); h.run(day) }, 2 * day, "set ahead"},
		"ahead, a hub, set right":      {func(h *host) { h.set = 10 * day; h.run(day); h.c.Word(); h.set = 0; h.run(day) }, 12 * day, "set back by 240h0m0s"},
		"off for ten days":             {func(h *host) { h.off(10*day, 0) }, 10 * day, ""},
		"off, without a battery":       {func(h *host) { h.off(10*day, -20000*day); h.run(2 * time.Hour) }, 2 * time.Hour, "how long the host was off is not known"},
		"off, no battery, set right":   {func(h *host) { h.off(10*day, -20000*day); h.run(2 * time.Hour); h.set = 0 }, 10*day + 2*time.Hour, ""},
		"off twice without a battery":  {func(h *host) { each(2, func(int) { h.off(5*day, -20000*day); h.run(day) }) }, 2 * day, "not known"},
		"off twice, set right at last": {func(h *host) { each(2, func(int) { h.off(5*day, -20000*day); h.run(day) }); h.set = 0 }, 12 * day, ""},
		"off for a moment, a bit back": {func(h *host) { h.off(10*time.Second, -20*time.Second); h.run(day) }, day, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost()
			c.do(h)
			require.InDelta(t, c.age.Hours(), h.age().Hours(), 3)
			if c.note == "" {
				require.Empty(t, h.c.Note())
			} else {
				require.Contains(t, h.c.Note(), c.note)
			}
		})
	}
}

func each(n int, f func(int)) {
	for i := range n {
		f(i)
	}
}

// A hub's word with a clock that is years behind: the age is none then, and what is counted
// after, with the clock set right later on and the hub away, is what goes by.
func TestWordWithWrongClock(t *testing.T) {
	h := newHost()
	h.set = -3650 * day
	h.c.Word()
	at := h.c.Now(stand)
	require.Equal(t, start.Add(-30*day), at, "the floor")
	h.run(day)
	h.set = 0
	h.run(day)
	require.InDelta(t, 48, h.c.Now(stand).Sub(at).Hours(), 1)
	require.Contains(t, h.c.Note(), "set ahead")
}

// Whatever is done to the wall clock of a host that runs: time never goes back, and no less
// time goes by than does.
func TestNoLessThanGoesBy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		last := h.c.Now(stand)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			h.set = time.Duration(rapid.Int64Range(-4000, 4000).Draw(t, "hours")) * time.Hour
			d := time.Duration(rapid.Int64Range(1, 48).Draw(t, "run")) * time.Hour
			if rapid.Bool().Draw(t, "restart") {
				h.restart(h.c.State())
			}
			now := h.run(d)
			if now.Sub(last) < d {
				t.Fatalf("%s went by, and %s were counted", d, now.Sub(last))
			}
			last = now
		}
		if h.c.Now(stand).Sub(start) < h.real {
			t.Fatal("less than went by")
		}
	})
}

func TestThisBoot(t *testing.T) {
	a, b := ThisBoot(), ThisBoot()
	require.Equal(t, a.ID, b.ID)
	require.NotEmpty(t, a.ID)
	require.GreaterOrEqual(t, b.Since, a.Since)
	require.Positive(t, a.Since)
}
