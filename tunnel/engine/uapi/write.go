package uapi

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Write writes the device as the answer to 'get', without the line of the
// error number. Keys that are zero are left out.
func (d *Device) Write(to io.Writer) error {
	w := bufio.NewWriter(to)
	if !d.PrivateKey.IsZero() {
		fmt.Fprintf(w, "private_key=%s\n", hex.EncodeToString(d.PrivateKey[:]))
	}
	if d.ListenPort != 0 {
		fmt.Fprintf(w, "listen_port=%d\n", d.ListenPort)
	}
	if d.Mark != 0 {
		fmt.Fprintf(w, "fwmark=%d\n", d.Mark)
	}
	for i := range d.Peers {
		p := &d.Peers[i]
		fmt.Fprintf(w, "public_key=%s\n", hex.EncodeToString(p.Key[:]))
		if p.PresharedKey != [32]byte{} {
			fmt.Fprintf(w, "preshared_key=%s\n", hex.EncodeToString(p.PresharedKey[:]))
		}
		fmt.Fprint(w, "protocol_version=1\n")
		if p.Endpoint.IsValid() {
			fmt.Fprintf(w, "endpoint=%s\n", p.Endpoint)
		}
		var sec, nsec int64
		if !p.LastHandshake.IsZero() {
			sec, nsec = p.LastHandshake.Unix(), int64(p.LastHandshake.Nanosecond())
		}
		fmt.Fprintf(w, "last_handshake_time_sec=%d\nlast_handshake_time_nsec=%d\ntx_bytes=%d\nrx_bytes=%d\npersistent_keepalive_interval=%d\n",
			sec, nsec, p.TxBytes, p.RxBytes, p.Keepalive/time.Second)
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(w, "allowed_ip=%s\n", a)
		}
	}
	return w.Flush()
}
