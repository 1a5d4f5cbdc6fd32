package protocol

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
)

// TicketHeader of a request to PathHubList or PathJoin carries a Ticket. Hubs of before
// ignore it.
const TicketHeader = "Causeway-Ticket"

// Ticket shows that its sender has a token, without showing the token's secret: with it a host
// that joins gets past those at the hub's door who have none, whatever its address. It gives
// nothing else: whoever steals one may ask as often as one token may. Its text form is
//
//	<id>.<mac>
//
// mac: HMAC-SHA256 of ticketText, with what the hub keeps of the secret (TokenSecret.Hash) as
// key; both base64url without padding.
type Ticket struct {
	ID  TokenID
	MAC [sha256.Size]byte
}

const ticketText = "causeway join ticket v1\n"

// Ticket returns the token's ticket.
func (t Token) Ticket() Ticket { return Ticket{t.ID, ticketMAC(t.ID, t.Secret.Hash())} }

func ticketMAC(id TokenID, hash [sha256.Size]byte) (mac [sha256.Size]byte) {
	h := hmac.New(sha256.New, hash[:])
	h.Write([]byte(ticketText))
	h.Write(id[:])
	copy(mac[:], h.Sum(nil))
	return mac
}

// Shows reports whether the ticket is that of a token with its id of whose secret this is the
// hash, in constant time.
func (t Ticket) Shows(hash [sha256.Size]byte) bool {
	want := ticketMAC(t.ID, hash)
	return hmac.Equal(t.MAC[:], want[:])
}

// String returns the text form.
func (t Ticket) String() string {
	return t.ID.String() + "." + base64.RawURLEncoding.EncodeToString(t.MAC[:])
}

var errTicket = errors.New("malformed ticket")

// ParseTicket reads the text form.
func ParseTicket(s string) (t Ticket, err error) {
	id, mac := base64.RawURLEncoding.EncodedLen(len(t.ID)), base64.RawURLEncoding.EncodedLen(len(t.MAC))
	if len(s) != id+1+mac || s[id] != '.' || t.ID.UnmarshalText([]byte(s[:id])) != nil {
		return Ticket{}, errTicket
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s[id+1:])
	if err != nil || len(b) != len(t.MAC) {
		return Ticket{}, errTicket
	}
	copy(t.MAC[:], b)
	return t, nil
}
