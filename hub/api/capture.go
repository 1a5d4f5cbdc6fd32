package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Bounds of captures.
const (
	CaptureDefaultTime = 30 * time.Second
	CaptureMaxTime     = 5 * time.Minute
	CaptureMaxBytes    = 64 << 20
	// CaptureType is the content type of a capture: pcapng.
	CaptureType = "application/x-pcapng"
)

// CaptureRequest asks for a recording of packets: of a node's tunnel interface, or of a
// pod's.
type CaptureRequest struct {
	On      string
	Filter  string
	Time    time.Duration // 0: CaptureDefaultTime
	Bytes   int64         // 0: as the agent likes
	Payload bool          // whole packets, where the node's config allows it
}

// Capture writes pcapng to w as packets come, until the time or bytes are used up.
func (c *Client) Capture(ctx context.Context, r CaptureRequest, w io.Writer) error {
	q := url.Values{"on": {r.On}}
	if r.Filter != "" {
		q.Set("filter", r.Filter)
	}
	if r.Time > 0 {
		q.Set("for", r.Time.String())
	}
	if r.Bytes > 0 {
		q.Set("bytes", strconv.FormatInt(r.Bytes, 10))
	}
	if r.Payload {
		q.Set("payload", "true")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.BaseURL+"/v1/diag/capture?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.explain(err, c.cfg.Timeout)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return readProblem(res)
	}
	// What a node sends is for a program that reads pcapng: nothing else passes.
	magic := make([]byte, 4)
	if _, err := io.ReadFull(res.Body, magic); err != nil || !bytes.Equal(magic, []byte{0x0A, 0x0D, 0x0D, 0x0A}) {
		return errors.New("the node answered no pcapng")
	}
	n, err := io.Copy(w, io.LimitReader(io.MultiReader(bytes.NewReader(magic), res.Body), CaptureMaxBytes+2<<20))
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("the capture broke off after %d bytes: %w", n, c.explain(err, c.cfg.Timeout))
	}
	return nil
}
