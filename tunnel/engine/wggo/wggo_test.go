package wggo_test

import (
	"testing"

	"go.uber.org/goleak"

	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/wggo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func factory(c enginetest.Config) (engine.Engine, error) {
	return wggo.New(wggo.Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, IdleAfter: c.IdleAfter, Log: c.Log, AnyDestination: c.AnyDestination})
}

func TestEngine(t *testing.T) { enginetest.Run(t, factory, factory) }
