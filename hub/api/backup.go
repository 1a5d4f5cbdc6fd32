package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Backup copies the hub's backup to w, not encrypted; whoever stores it encrypts
// it first (hub/backup has the format). It is whole only if the error is nil. The
// client's timeout does not bound it, ctx does.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.BaseURL+"/v1/backup", nil)
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
	if kind := res.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/octet-stream") {
		return fmt.Errorf("the hub answered no backup but %.80q", kind)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("the backup broke off: %w; the hub's log says what it could not read", c.explain(err, c.cfg.Timeout))
	}
	return nil
}
