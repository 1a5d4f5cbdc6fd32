package inline_test

import (
	"os"
	"testing"

	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/wggo"
)

func inlineEngine(c enginetest.Config) (engine.Engine, error) {
	return inline.New(inline.Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, Log: c.Log, AnyDestination: c.AnyDestination})
}

func wireguardGo(c enginetest.Config) (engine.Engine, error) {
	return wggo.New(wggo.Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, IdleAfter: c.IdleAfter, Log: c.Log, AnyDestination: c.AnyDestination})
}

// The same tests over all pairs: the first engine is the one looked at and
// mostly begins.
func TestEngines(t *testing.T) {
	t.Run("inline with inline", func(t *testing.T) { enginetest.Run(t, inlineEngine, inlineEngine) })
	t.Run("inline with wireguard-go", func(t *testing.T) { enginetest.Run(t, inlineEngine, wireguardGo) })
	if os.Getenv("CAUSEWAY_SOAK") == "" { // wireguard-go itself is looked at in package wggo
		return
	}
	t.Run("wireguard-go with inline", func(t *testing.T) { enginetest.Run(t, wireguardGo, inlineEngine) })
}
