package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Limits of a watch.
const (
	maxWatchLine = 4 << 20
	watchSilence = 45 * time.Second // the hub gives a sign of life every 10 s
)

// ErrWatchEnded says that the hub ended a watch: it stops, or the watcher was too slow.
var ErrWatchEnded = errors.New("the hub ended the watch")

// WatchInventory hands over each change of the facts of node, or of all nodes if it is
// empty, until ctx ends or the hub ends the watch. ready, if it is not nil, is called once
// nothing can be missed any more; what either function returns ends the watch.
func (c *Client) WatchInventory(ctx context.Context, node string, ready func() error, each func(InventoryChange) error) error {
	path := "/v1/inventory/watch"
	if node != "" {
		path += "?node=" + url.QueryEscape(node)
	}
	return c.watch(ctx, path, ready, func(data []byte) error {
		var v InventoryChange
		if err := json.Unmarshal(data, &v); err != nil {
			return fmt.Errorf("read the hub's events: %w", err)
		}
		return each(v)
	})
}

// watch reads server-sent events and hands over their data.
func (c *Client) watch(ctx context.Context, path string, ready func() error, each func(data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silent := time.AfterFunc(watchSilence, cancel)
	defer silent.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.BaseURL+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream, application/problem+json")
	res, err := c.success(req, watchSilence)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, maxWatchLine)
	for sc.Scan() {
		silent.Reset(watchSilence)
		if ready != nil {
			if err := ready(); err != nil {
				return err
			}
			ready = nil
		}
		if data, ok := bytes.CutPrefix(sc.Bytes(), []byte("data: ")); ok {
			if err := each(data); err != nil {
				return err
			}
		}
	}
	if err := sc.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return c.explain(err, watchSilence)
	}
	return ErrWatchEnded
}
