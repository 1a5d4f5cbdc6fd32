package wggo

import (
	"fmt"
	"strings"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/device"
)

// deviceLogger passes the device's log on: what it calls errors as warnings, as
// it recovers by itself; the rest, some of it for each packet, for debugging.
func deviceLogger(log zerolog.Logger) *device.Logger {
	out := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	if log.GetLevel() <= zerolog.DebugLevel && zerolog.GlobalLevel() <= zerolog.DebugLevel {
		out.Verbosef = func(format string, args ...any) {
			log.Debug().Str("detail", fmt.Sprintf(format, args...)).Msg("wireguard-go")
		}
	}
	out.Errorf = func(format string, args ...any) {
		level := zerolog.WarnLevel
		if strings.Contains(format, "Failed to send") {
			level = zerolog.DebugLevel // no path to the peer now: the underlay tells
		}
		log.WithLevel(level).Str("detail", fmt.Sprintf(format, args...)).Msg("wireguard-go")
	}
	return out
}
