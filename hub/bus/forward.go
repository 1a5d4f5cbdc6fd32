package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// forwardWindow is how many messages may wait for the other cluster at once. Beyond it
	// they wait here, up to forwardPending bytes; what is lost then was not
	// acknowledged, and comes again.
	forwardWindow  = 256
	forwardPending = 64 << 20
	forwardTimeout = 5 * time.Second
)

// Forward passes what agents publish below subject on to the streams of js, another
// cluster's, until ctx ends, and gives them its acknowledgement or refusal for
// answer: nothing is acknowledged that the cluster does not have. The agents'
// account must have no stream of its own there (Config.Forwarded).
func (s *Server) Forward(ctx context.Context, js jetstream.JetStream, subject string) error {
	nc, err := s.AgentsConn()
	if err != nil {
		return err
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync(subject)
	if err == nil {
		err = sub.SetPendingLimits(-1, forwardPending)
	}
	if err != nil {
		return fmt.Errorf("forward %s: %w", subject, err)
	}
	slots := make(chan struct{}, forwardWindow)
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, nats.ErrSlowConsumer):
			continue // told once of what was lost
		case err != nil:
			return fmt.Errorf("forward %s: %w", subject, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		go func() {
			defer func() { <-slots }()
			answer := forward(ctx, js, m)
			if m.Reply != "" && answer != nil {
				nc.Publish(m.Reply, answer)
			}
		}()
	}
}

// forward publishes one message and returns what its publisher is told; nil: nothing.
func forward(ctx context.Context, js jetstream.JetStream, m *nats.Msg) []byte {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	out := nats.NewMsg(m.Subject)
	out.Data = m.Data
	// The one header that is a publisher's to set.
	if id := m.Header.Get(nats.MsgIdHdr); id != "" {
		out.Header.Set(nats.MsgIdHdr, id)
	}
	ack, err := js.PublishMsg(ctx, out, jetstream.WithRetryAttempts(0))
	var answer any = ack
	switch {
	case ctx.Err() != nil:
		return nil // in doubt: it asks again, under the same id
	case err != nil:
		answer = map[string]any{"error": map[string]any{"code": 503, "err_code": 10008, "description": "the hub's external NATS does not take it now: " + err.Error()}}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return nil
	}
	return b
}
