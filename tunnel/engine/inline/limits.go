package inline

import (
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// The constants of the protocol, from section 6.1 of the WireGuard paper
// (https://www.wireguard.com/papers/wireguard.pdf).
const (
	rekeyAfterMessages  = uint64(1) << 60
	rejectAfterMessages = uint64(device.RejectAfterMessages)
	rekeyAfterTime      = 120 * time.Second
	rejectAfterTime     = 180 * time.Second
	rekeyAttemptTime    = 90 * time.Second
	rekeyTimeout        = 5 * time.Second
	keepaliveTimeout    = 10 * time.Second

	// maxAttempts is how many times an initiation is sent again before the
	// engine gives up and drops what waits for the session.
	maxAttempts = int(rekeyAttemptTime / rekeyTimeout)
	// eraseAfter is when the keys of a silent peer are forgotten.
	eraseAfter = 3 * rejectAfterTime
	// rekeyJitter keeps two sides from initiating in lock-step.
	rekeyJitter = 334 * time.Millisecond
	// refreshReceiving is the age at which the initiator of a session that
	// only receives asks for a new one.
	refreshReceiving = rejectAfterTime - keepaliveTimeout - rekeyTimeout
	// crossing is how long our own initiation makes us drop the other side's:
	// not for good, ours may be lost. The underlay does the same before the
	// engine; this is for carriers that do not.
	crossing = time.Second
	// initiationInterval is the shortest time between two initiations of one
	// peer that are answered.
	initiationInterval = device.HandshakeInitationRate
	// underLoadTime is how long cookies are asked for after the handshake
	// queue was found filled.
	underLoadTime = device.UnderLoadAfterTime
)

// Sizes and bounds.
const (
	headerSize   = device.MessageTransportHeaderSize
	overhead     = device.MessageTransportSize // header and tag
	padding      = device.PaddingMultiple
	maxDatagrams = 65507 // bytes of one run: the largest UDP payload
	maxSegments  = 64    // messages of one run: UDP_MAX_SEGMENTS

	// queueLength bounds the handshake messages that wait for the control
	// goroutine, underLoadLength is when it starts to ask for cookies.
	queueLength     = 256
	underLoadLength = queueLength / 8

	// What waits for a session, by peer and in all. 1024 packets are 1.4 MB of a TCP
	// transfer that begins or moves here, where WireGuard keeps 128.
	maxStagedPackets = 1024
	maxStagedBytes   = 8 << 20

	// askInterval is how often the data path reminds the control goroutine
	// that it needs a session.
	askInterval = time.Second
)

// instant is a monotonic time in nanoseconds since the engine was made. Zero
// is never.
type instant int64

func (i instant) add(d time.Duration) instant { return i + instant(d) }

// passed reports whether d has passed since i; true if i is never.
func (i instant) passed(now instant, d time.Duration) bool {
	return i == 0 || now-i >= instant(d)
}

// earlier returns the earlier of two instants; never counts as latest.
func earlier(a, b instant) instant {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
