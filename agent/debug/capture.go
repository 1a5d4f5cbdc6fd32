package debug

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"causeway/agent/capture"
	"causeway/protocol"
)

// CaptureQuery says what to record.
type CaptureQuery struct {
	Pod     netip.Addr // of whose interface; invalid: the tunnel's
	Filter  string
	Time    time.Duration
	Bytes   int64
	Payload bool
	Flush   func() error
}

// Recording is a capture that has begun.
type Recording interface {
	Run(context.Context, io.Writer) error
}

// capture streams pcapng. Payloads are for the hub only where the config allows it.
func (s *Server) capture(payload bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		q := CaptureQuery{Filter: r.FormValue("filter"), Time: capture.DefaultTime, Bytes: capture.DefaultBytes, Payload: r.FormValue("payload") == "true", Flush: rc.Flush}
		var err error
		if v := r.FormValue("pod"); v != "" {
			if q.Pod, err = netip.ParseAddr(v); err != nil || q.Pod.Zone() != "" {
				fail(w, http.StatusBadRequest, "pod has to be an address")
				return
			}
		}
		if v := r.FormValue("for"); v != "" {
			if q.Time, err = protocol.ParseDuration(v); err != nil || q.Time <= 0 || q.Time > capture.MaxTime {
				fail(w, http.StatusBadRequest, "for has to be a time up to "+capture.MaxTime.String())
				return
			}
		}
		if v := r.FormValue("bytes"); v != "" {
			if q.Bytes, err = strconv.ParseInt(v, 10, 64); err != nil || q.Bytes < 1024 || q.Bytes > capture.MaxBytes {
				fail(w, http.StatusBadRequest, fmt.Sprintf("bytes has to be a number from 1024 to %d", capture.MaxBytes))
				return
			}
		}
		if q.Payload && !payload {
			s.allowed(AllowPayload, nil)(w, r)
			return
		}
		release, ok := take(w, s.slow)
		if !ok {
			return
		}
		defer release()
		rec, err := s.cfg.Capture(q)
		if err != nil {
			fail(w, http.StatusConflict, err.Error())
			return
		}
		rc.SetWriteDeadline(time.Now().Add(q.Time + writeTimeout))
		w.Header().Set("Content-Type", "application/x-pcapng")
		if err := rec.Run(r.Context(), w); err != nil {
			panic(http.ErrAbortHandler) // the reader shall not take it for whole
		}
	}
}
