package stream

import (
	"bytes"
	"io"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"causeway/protocol"
)

// oneSide is a connection whose far side says one thing.
type oneSide struct {
	io.Reader
	asked bytes.Buffer
}

func (o *oneSide) Write(b []byte) (int, error) { return o.asked.Write(b) }

// keyed is a far side that puts the answer to the request's key where "ACCEPT" is.
type keyed struct {
	*oneSide
	answer []byte
}

var wsKey = regexp.MustCompile(`(?i)sec-websocket-key: (\S+)`)

func (k *keyed) Read(b []byte) (int, error) {
	if k.Reader == nil {
		if m := wsKey.FindSubmatch(k.asked.Bytes()); m != nil {
			k.answer = bytes.ReplaceAll(k.answer, []byte("ACCEPT"), []byte(acceptKey(string(m[1]))))
		}
		k.Reader = bytes.NewReader(k.answer)
	}
	return k.Reader.Read(b)
}

// FuzzDialAnswers: a proxy, and whatever stands where a hub's HTTPS port is said
// to be, answer an agent before anything is authenticated. No answer crashes it or
// makes it read without an end; what it says of one is a line without control
// characters and without the proxy's password; a stream is opened on the right
// answer alone, and what came behind it is kept whole.
func FuzzDialAnswers(f *testing.F) {
	for _, a := range []string{
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 407 \x1b[2J\r\nContent-Length: 99999999999\r\n\r\n",
		"HTTP/1.1 101 Switching\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Protocol: " + protocol.StreamProtocol + "\r\n\r\n\x82\x0c\x00\x05",
		"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"\x15\x03\x01\x00\x02\x02\x16",
	} {
		f.Add([]byte(a))
	}
	proxy, err := url.Parse("http://user:hunter2@192.0.2.3:3128")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		line := func(err error) {
			if s := err.Error(); strings.ContainsFunc(s, unicode.IsControl) || strings.Contains(s, "hunter2") {
				t.Fatalf("says %q", s)
			}
		}
		c := &oneSide{Reader: bytes.NewReader(b)}
		if err := connect(c, proxy, "192.0.2.1:443"); err != nil {
			line(err)
		}
		k := &keyed{oneSide: &oneSide{}, answer: b}
		initial, err := upgrade(k, "192.0.2.1:443")
		if err != nil {
			line(err)
			return
		}
		if !bytes.Contains(b, []byte("101")) || !bytes.Contains(b, []byte("ACCEPT")) || !bytes.HasSuffix(k.answer, initial) && len(k.answer) <= maxHead {
			t.Fatalf("opened by %q with %q", b, initial)
		}
	})
}
