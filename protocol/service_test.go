package protocol

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestServiceNormal(t *testing.T) {
	read := func(text string) (Service, error) {
		var s Service
		require.NoError(t, json.Unmarshal([]byte(text), &s), text)
		return s.Normal()
	}
	s, err := read(`{"ports":[{"port":80}],"backends":[{"node":"n1"}]}`)
	require.NoError(t, err)
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.JSONEq(t, `{"segment":"default","ports":[{"port":80,"target":80,"protocol":"tcp"}],"backends":[{"node":"n1"}],"mode":"spread","prefer":"near","sticky":"none",
		"health":{"type":"tcp","port":80,"interval":"1s","timeout":"1s","fail":3,"ok":2},"on_dead":"reset","slow_start":"30s","drain":"1m0s"}`, string(b))
	again, err := s.Normal()
	require.NoError(t, err)
	require.Equal(t, s, again)
	s, err = read(`{"ports":[{"port":53,"protocol":"udp","name":"dns"}],"mode":"failover","order":["b","a"]}`)
	require.NoError(t, err)
	require.Equal(t, HealthNone, s.Health.Type)
	require.Equal(t, PreferOrder, s.Prefer)
	s, err = read(`{"ports":[{"name":"http","port":80,"target":8080,"protocol":"tcp"}],"health":{"type":"http"},"sticky":"client","slow_start":"5m"}`)
	require.NoError(t, err)
	require.Equal(t, ServiceHealth{Type: HealthHTTP, Port: 8080, Path: "/", Interval: Duration(time.Second), Timeout: Duration(time.Second), Fail: 3, OK: 2}, s.Health)

	const ports = `"ports":[{"port":80}]`
	for text, want := range map[string]string{
		`{}`:                                "ports: a service has at least one, such as {name: http, port: 80, target: 8080}",
		`{"ports":[{"port":0}]}`:            "ports: port is 1 to 65535",
		`{"ports":[{"port":4711}]}`:         "ports: 4711 is one of Causeway's own, 4710 to 4719",
		`{"ports":[{"port":1},{"port":2}]}`: "ports: port 1 needs a name where there are several",
		`{"ports":[{"port":1,"name":"a"},{"port":1,"name":"b"}]}`:                       "ports: there are two of tcp/1",
		`{"ports":[{"port":1,"name":"a"},{"port":2,"name":"a"}]}`:                       "ports: there are two a",
		`{"ports":[{"port":80,"protocol":"sctp"}]}`:                                     `ports: protocol: "sctp" is none of tcp, udp`,
		`{` + ports + `,"mode":"best"}`:                                                 `mode: "best" is none of spread, failover, single-writer`,
		`{` + ports + `,"prefer":"weights"}`:                                            "prefer: weights needs weights of sites, such as {idc-sh: 90, cloud-eu: 10}",
		`{` + ports + `,"prefer":"weights","weights":{"a":0}}`:                          "weights: all are 0",
		`{` + ports + `,"weights":{"a":1001}}`:                                          "weights: a: 1001 is not between 0 and 1000",
		`{` + ports + `,"prefer":"order"}`:                                              "prefer: order needs an order of sites, such as [idc-sh, cloud-eu]",
		`{` + ports + `,"order":["a","a"]}`:                                             "order: a is there twice",
		`{` + ports + `,"mode":"single-writer"}`:                                        "writer: say which site a single-writer service uses",
		`{` + ports + `,"mode":"single-writer","writer":"a","stay":["b"]}`:              "writer: a is not among the sites that the service may not leave",
		`{` + ports + `,"writer":"a"}`:                                                  "writer: only mode single-writer has one, and this is spread",
		`{` + ports + `,"backends":[{}]}`:                                               "backends: each has one of selector, node and addresses",
		`{` + ports + `,"backends":[{"node":"a","selector":{"a":"b"}}]}`:                "backends: each has one of selector, node and addresses",
		`{` + ports + `,"backends":[{"addresses":["10.0.0.1"]}]}`:                       "backends: say at which site 10.0.0.1 is",
		`{` + ports + `,"backends":[{"site":"a","addresses":["127.0.0.1"]}]}`:           "backends: 127.0.0.1 is no address of a backend",
		`{` + ports + `,"backends":[{"site":"a","addresses":["10.0.0.1","10.0.0.1"]}]}`: "backends: 10.0.0.1 is there twice",
		`{` + ports + `,"health":{"type":"tcp","path":"/x"}}`:                           "health: only type http has a path, and this is tcp",
		`{` + ports + `,"health":{"type":"http","path":"x y"}}`:                         `health: path: "x y" is no path of a URL`,
		`{` + ports + `,"health":{"interval":"1ms"}}`:                                   "health: interval: 1ms is not between 200ms and 5m",
		`{` + ports + `,"slow_start":"2h"}`:                                             "slow_start: 2h0m0s is not between 0s and 1h",
		`{` + ports + `,"stay":["A"]}`:                                                  `stay: "A" cannot name a site`,
	} {
		_, err := read(text)
		require.EqualError(t, err, want, text)
	}
}

func TestServiceWords(t *testing.T) {
	ask := ServiceAsk{7, 1 << 60, 3}
	got, err := ParseServiceAsk(ask.Append(nil))
	require.NoError(t, err)
	require.Equal(t, ask, got)
	a := ServiceAnswer{7, 9, 1, 2, []ServiceWord{{ServiceHash("web"), netip.MustParseAddr("10.1.0.2"), Ready}, {1, netip.MustParseAddr("fd00::1"), NotReady}}}
	answer, err := ParseServiceAnswer(a.Append(nil))
	require.NoError(t, err)
	require.Equal(t, a, answer)
	require.Equal(t, "43577361000000070000000000000009000100020002", hex.EncodeToString(a.Append(nil)[:22]))
	require.Equal(t, ServiceDigest(a.Words), ServiceDigest([]ServiceWord{a.Words[1], a.Words[0]}))
	require.NotEqual(t, ServiceDigest(a.Words), ServiceDigest(a.Words[:1]))
	for _, b := range [][]byte{nil, a.Append(nil)[:46], append(a.Append(nil), 0)} {
		_, err := ParseServiceAnswer(b)
		require.Error(t, err)
	}
}

func FuzzServiceWords(f *testing.F) {
	f.Add(ServiceAsk{1, 2, 3}.Append(nil))
	f.Add(ServiceAnswer{1, 2, 0, 1, []ServiceWord{{3, netip.MustParseAddr("10.1.0.2"), Ready}}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ParseServiceAnswer(b); err == nil {
			again, err := ParseServiceAnswer(m.Append(nil))
			require.NoError(t, err)
			require.Equal(t, m, again)
		}
		if m, err := ParseServiceAsk(b); err == nil {
			require.Equal(t, b[:18], m.Append(nil)[:18])
		}
	})
}
