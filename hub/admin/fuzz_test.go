package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// fuzzed are the routes that read a body, in a fixed order.
func fuzzed() (out []api.Operation) {
	for _, op := range api.Operations {
		if op.Request != nil {
			out = append(out, op)
		}
	}
	return out
}

// An admin may send any body to any route, by mistake or because his credentials were
// stolen. Whatever it is, the hub answers within its limits: success, or a problem
// document of one line; it does not panic and blames nobody else (5xx).
func FuzzBodies(f *testing.F) {
	store := statetest.Open(f)
	table := fleet.New(fleet.Config{Number: 1, State: store.State, Log: zerolog.Nop()})
	table.SetPolicy(fleet.Policy{Compiled: &policy.Compiled{Open: true}, Sequence: math.MaxUint64}) // no loop runs
	s := New(Config{Number: 1, Store: store, Fleet: table, Events: &event.Log{}, Log: zerolog.Nop(), Bound: func(protocol.NodeNumber) []netip.AddrPort { return nil }})
	_, err := s.cfg.Store.Update(context.Background(), "test", "test", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "a"}) })
	require.NoError(f, err)
	ops := fuzzed()
	for i, op := range ops {
		b, err := json.Marshal(op.Request)
		require.NoError(f, err)
		f.Add(uint8(i), b)
	}
	f.Add(uint8(0), []byte(`{"name":"b","ranges":["10.0.0.0/8"],"max_age":"forever"}`))
	f.Add(uint8(1), []byte(`{"max_age":"-1h"}`))
	f.Add(uint8(2), []byte(`{"site":"a","ttl":"1h","routes":["10.1.0.0/16"],"labels":{"a":"b"}}`))
	f.Add(uint8(3), []byte(`{"labels":{"":"\u0000"}}`))
	f.Add(uint8(4), []byte(strings.Repeat("[", 20000)))
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		op := ops[int(which)%len(ops)]
		path := strings.NewReplacer("{name}", "a", "{id}", "a").Replace(op.Path)
		r := as(Admin)(httptest.NewRequest(op.Method, "http://hub"+path, bytes.NewReader(body)))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		require.Less(t, w.Code, 500, "%s %s: %s", op.Method, op.Path, w.Body)
		require.Less(t, w.Body.Len(), 4<<20)
		if w.Code/100 != 2 {
			require.Less(t, w.Body.Len(), maxProblemLength)
			var p struct{ Detail string }
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
			require.NotContains(t, p.Detail, "\n")
		}
	})
}

// Each route that reads a body refuses one that is too long or too deep, and soon.
func TestBodiesAreBounded(t *testing.T) {
	s := New(Config{Number: 1, Store: statetest.Open(t), Events: &event.Log{}, Log: zerolog.Nop()})
	for _, op := range fuzzed() {
		path := strings.NewReplacer("{name}", "a", "{id}", "a").Replace(op.Path)
		for what, c := range map[string]struct {
			body string
			want []int
		}{
			"too long":                   {`{"name":"` + strings.Repeat("a", maxBody) + `"}`, []int{413}},
			"too deep":                   {strings.Repeat("[", maxBody-1), []int{400, 422}},
			"deep map":                   {strings.Repeat(`{"a":`, 100000), []int{400, 422}},
			"no JSON":                    {"\x00\xff", []int{400, 422}},
			"long value of a wrong type": {`{"name":["` + strings.Repeat("ä", maxBody/4) + `"]}`, []int{400, 422}},
			"long unknown field":         {`{"` + strings.Repeat("ä", maxBody/4) + `":1}`, []int{400, 422}},
			"many unknown fields":        {`{` + manyFields(20000) + `}`, []int{400, 422}},
		} {
			r := as(Admin)(httptest.NewRequest(op.Method, "http://hub"+path, strings.NewReader(c.body)))
			r.Header.Set("Content-Type", "application/json")
			w, start := httptest.NewRecorder(), time.Now()
			s.handler.ServeHTTP(w, r)
			require.True(t, slices.Contains(c.want, w.Code), "%s %s: %s: status %d: %.200s", op.Method, op.Path, what, w.Code, w.Body)
			require.Less(t, time.Since(start), patience, what)
			require.Less(t, w.Body.Len(), maxProblemLength, "%s %s: %s", op.Method, op.Path, what)
		}
	}
}

func manyFields(n int) string {
	l := make([]string, n)
	for i := range l {
		l[i] = fmt.Sprintf(`"x%d":1`, i)
	}
	return strings.Join(l, ",")
}

// Connections of strangers who say nothing keep no admin out, and end by themselves.
func TestSilentStrangers(t *testing.T) {
	h := startRemote(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	client := h.client(pairOf(t, h.admin("adam", Admin)))
	var silent []net.Conn
	for range 3 * maxUnknownSource {
		c, err := net.Dial("tcp", h.addr)
		require.NoError(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	start := time.Now()
	res, err := client.Get("https://hub/v1/status")
	require.NoError(t, err)
	res.Body.Close()
	took := time.Since(start)
	require.Less(t, took, time.Second)
	open := 0
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "timeout") {
			open++
		}
	}
	require.LessOrEqual(t, open, maxUnknownSource)
	t.Logf("%d silent connections, %d of them still held; an admin's request took %s", len(silent), open, took.Round(time.Microsecond))
}
