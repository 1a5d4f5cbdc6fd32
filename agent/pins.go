package agent

import "context"

// loadPins reads the pinned keys of peers. Where nobody knows which there were, file and
// copy being of no use, no peer's key is believed until somebody restores the file or
// removes it: else whoever damages it would have the keys of a hub's choice pinned next.
func (a *Agent) loadPins() {
	pins, err := a.cfg.Store.Pins()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pinsLost = err
	if err == nil {
		a.pins = pins
	}
}

// findPins looks whether lost pins are there again, or given up.
func (a *Agent) findPins(ctx context.Context) {
	a.mu.Lock()
	lost := a.pinsLost != nil
	a.mu.Unlock()
	if !lost {
		return
	}
	if a.loadPins(); a.hasPins() {
		a.log.Info().Msg("the pinned keys of peers are known again")
		a.reapply(ctx)
	}
}

func (a *Agent) hasPins() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pinsLost == nil
}
