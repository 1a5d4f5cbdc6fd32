package join

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"causeway/protocol"
)

// answers is a server that answers every request with these bytes.
type answers []byte

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(a)), r)
}

// FuzzAnswers: whatever stands where a token leads to answers a host that joins,
// before any key is known (hub list) and, as a hub that was taken over, after
// (answer). Nothing crashes the join, what it says of it is one line without
// control characters, and no identity comes of what the pinned key did not sign.
func FuzzAnswers(f *testing.F) {
	key, err := protocol.NewClusterPrivateKey()
	if err != nil {
		f.Fatal(err)
	}
	list := protocol.HubList{Version: 1, Serial: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{9}, UDP: []string{"192.0.2.1:51820"}}}}
	signed, err := list.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	token, err := protocol.NewToken(key.Public().Pin(), "192.0.2.1:443")
	if err != nil {
		f.Fatal(err)
	}
	pending, err := newPending(token.ID)
	if err != nil {
		f.Fatal(err)
	}
	body, err := json.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"a\":"), []byte(`{"number":9,"name":"a","site":"b","overlay":["198.18.0.9"]}`), true)
	f.Add(append([]byte("HTTP/1.1 200 OK\r\n\r\n"), body...), []byte(`{"number":1,"name":"a","site":"b","overlay":["198.18.0.1"]}`), true)
	f.Add([]byte("HTTP/1.1 404 \x1b[2Jgone\r\nLocation: https://a/\r\n\r\n"), []byte(`{"number":9,"name":"a","site":"b","overlay":["10.0.0.9",""],"hub_list":{"payload":"e30="}}`), false)
	f.Fuzz(func(t *testing.T, response, answer []byte, listed bool) {
		line := func(err error) {
			if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Fatalf("not one plain line: %q", err)
			}
		}
		cl := &http.Client{Transport: answers(response), CheckRedirect: newClient(Config{}).CheckRedirect}
		got, err := fetchList(context.Background(), cl, token)
		line(err)
		if err == nil && len(got.Hubs) == 0 {
			t.Fatal("took a list without a hub")
		}
		_, err = redeem(context.Background(), cl, list, pending, Config{Token: token, Name: "n"})
		if line(err); err == nil {
			t.Fatal("took an answer that no hub sealed")
		}
		var ans protocol.JoinAnswer
		if json.Unmarshal(answer, &ans) != nil {
			return
		}
		if listed {
			ans.HubList = &signed
		}
		if ans.Refused != nil {
			line(&RefusedError{ans.Refused.Code, ans.Refused.Message})
			return
		}
		id, err := checkAnswer(ans, pending, token, 1)
		line(err)
		if err != nil {
			return
		}
		if !id.Number.Valid() || id.Number == 1 || !protocol.ValidName(id.Name) || !protocol.ValidName(id.Site) || len(id.Overlay) == 0 || id.WireGuardKey != pending.WireGuardKey {
			t.Fatalf("took number %d, name %q, site %q, overlay %v", id.Number, id.Name, id.Site, id.Overlay)
		}
		if _, err := id.HubList.Open(token.Pin); err != nil {
			t.Fatalf("took a hub list: %v", err)
		}
	})
}
