// Package protocol defines what crosses the wire, between agents, hubs and the
// readers of the inventory: keys, tokens, join messages, the control channel's
// messages, the netmap, probe and relay formats, NATS subjects and payloads.
//
// It does no I/O of its own beyond encoding to and decoding from an
// io.Reader or io.Writer that the caller passes, keeps no state and starts no
// goroutine. Every decoder bounds what it reads before it allocates.
package protocol

// Version is the version of the control protocol spoken by this build. Peers
// one version apart work together: unknown fields are ignored, unknown kinds
// are answered with an error.
const Version = 1
