package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"causeway/protocol"
)

// Bounds of proving policies.
const (
	ProveDefaultTime  = 5 * time.Minute
	ProveMaxTime      = 30 * time.Minute
	ProveDefaultPairs = 2000
	ProveMaxPairs     = 20_000
	// ProveType is the content type of the answer: lines of JSON.
	ProveType = "application/x-ndjson"
)

// ProveRequest asks to try with packets what policies close.
type ProveRequest struct {
	Open  bool     `json:"open,omitempty"`  // try all that is open, too, and not a sample alone
	Pairs int      `json:"pairs,omitempty"` // at most so many closed ones, at most ProveMaxPairs; 0: ProveDefaultPairs
	Time  Duration `json:"time,omitempty"`  // of all, at most ProveMaxTime; 0: ProveDefaultTime
}

// Check fills in what is not said, and says what is wrong.
func (r *ProveRequest) Check() error {
	if r.Pairs == 0 {
		r.Pairs = ProveDefaultPairs
	}
	if r.Time == 0 {
		r.Time = Duration(ProveDefaultTime)
	}
	switch {
	case r.Pairs < 1 || r.Pairs > ProveMaxPairs:
		return fmt.Errorf("pairs are 1 to %d", ProveMaxPairs)
	case r.Time < Duration(time.Second) || r.Time > Duration(ProveMaxTime):
		return fmt.Errorf("the time is 1s to %s", ProveMaxTime)
	}
	return nil
}

// ProveLine is a line of the answer: how far it is; at the end the result, or an error.
type ProveLine struct {
	Done  int                         `json:"done,omitempty"`
	Of    int                         `json:"of,omitempty"`
	Proof *protocol.SignedPolicyProof `json:"proof,omitempty"`
	Error string                      `json:"error,omitempty"`
}

// ProvePolicies has packets tried. told hears how far it is; it ends with ctx.
func (c *Client) ProvePolicies(ctx context.Context, r ProveRequest, told func(done, of int)) (out protocol.SignedPolicyProof, err error) {
	if err := r.Check(); err != nil {
		return out, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.BaseURL+"/v1/policy/prove", bytes.NewReader(b))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return out, c.explain(err, c.cfg.Timeout)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return out, readProblem(res)
	}
	for d := json.NewDecoder(io.LimitReader(res.Body, MaxResponse)); ; {
		var l ProveLine
		switch err := d.Decode(&l); {
		case err != nil && ctx.Err() != nil:
			return out, ctx.Err()
		case err != nil:
			return out, c.explain(err, c.cfg.Timeout)
		case l.Error != "":
			return out, errors.New(protocol.Printable(l.Error))
		case l.Proof != nil:
			return *l.Proof, nil
		}
		told(l.Done, l.Of)
	}
}
