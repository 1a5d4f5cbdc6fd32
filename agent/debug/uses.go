package debug

import (
	"net/http"
	"sync"
	"time"

	"causeway/protocol"
)

// maxUses is how many uses are kept.
const maxUses = 500

// Who asked.
const (
	FromSocket = "socket"
	FromHub    = "hub"
)

// Use is one request for a debug endpoint: the node's own record of who looked.
type Use struct {
	Time   time.Time `json:"time"`
	From   string    `json:"from"`          // socket or hub
	Who    string    `json:"who,omitempty"` // the admin, as the hub names him
	Method string    `json:"method"`
	Path   string    `json:"path"` // with the query
	Status int       `json:"status"`
	Bytes  int64     `json:"bytes"`
	Took   Duration  `json:"took"`
}

// uses is the last of them.
type uses struct {
	mu   sync.Mutex
	list []Use
}

func (u *uses) add(x Use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.list) >= maxUses {
		u.list = append(u.list[:0], u.list[1:]...)
	}
	u.list = append(u.list, x)
}

// newest lists them, newest first.
func (u *uses) newest() []Use {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]Use, 0, len(u.list))
	for i := len(u.list) - 1; i >= 0; i-- {
		out = append(out, u.list[i])
	}
	return out
}

// audit notes every request, refused ones too.
func (s *Server) audit(from string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &counter{ResponseWriter: w, status: http.StatusOK}
		u := Use{Time: time.Now().UTC(), From: from, Method: r.Method, Path: short(r.URL.RequestURI(), 256)}
		if from == FromHub {
			u.Who = short(r.Header.Get(protocol.DebugWho), 128)
		}
		defer func() {
			u.Status, u.Bytes, u.Took = c.status, c.bytes, Duration(time.Since(u.Time))
			s.uses.add(u)
			if s.cfg.Used != nil {
				s.cfg.Used(u)
			}
		}()
		h.ServeHTTP(c, r)
	})
}

// short keeps printable ASCII, at most n bytes of it.
func short(s string, n int) string {
	b := make([]byte, 0, min(len(s), n))
	for i := 0; i < len(s) && len(b) < n; i++ {
		if s[i] >= ' ' && s[i] < 0x7f {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// counter counts an answer's bytes.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(code int) {
	c.status = code
	c.ResponseWriter.WriteHeader(code)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// Unwrap serves http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
