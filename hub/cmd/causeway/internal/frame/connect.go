package frame

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// EnvContext names the context when --context does not.
const EnvContext = "CAUSEWAY_CONTEXT"

// CurrentFile names the context in use, in the directory of contexts.
const CurrentFile = "current"

// ContextDir is where contexts are stored.
func ContextDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", errors.New("there is no directory for configuration: set HOME, or name a file with --context")
	}
	return filepath.Join(dir, "causeway", "contexts"), nil
}

// ContextPath is the file of a stored context.
func ContextPath(dir, name string) string { return filepath.Join(dir, name+".pem") }

// ReadContext reads a context that others on this host cannot have read.
func ReadContext(path string) (api.Context, error) {
	f, err := os.Open(path)
	if err != nil {
		return api.Context{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return api.Context{}, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return api.Context{}, fmt.Errorf("others may read or write %s, which has a private key: chmod 600 it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, api.MaxContext+1))
	if err != nil {
		return api.Context{}, err
	}
	c, err := api.ParseContext(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// FindContext returns the context of a name or, if it has a slash or dot, a file.
func FindContext(what string) (api.Context, error) {
	if strings.ContainsAny(what, "/.") {
		c, err := ReadContext(what)
		if err != nil {
			return c, Usagef("--context: %w", err)
		}
		return c, nil
	}
	dir, err := ContextDir()
	if err != nil {
		return api.Context{}, usage{err}
	}
	if !protocol.ValidName(what) {
		return api.Context{}, Usagef("--context %.80q: give the name of a stored context or a file (./NAME)", what)
	}
	c, err := ReadContext(ContextPath(dir, what))
	if errors.Is(err, fs.ErrNotExist) {
		return c, Usagef("there is no context %s; see 'causeway context list', or name a file as ./FILE", what)
	}
	if err != nil {
		return c, usage{err}
	}
	return c, nil
}

// Current is the name of the context in use, empty for none.
func Current(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, CurrentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	name := strings.TrimSpace(string(b))
	if err == nil && !protocol.ValidName(name) {
		err = fmt.Errorf("%s names no context: run 'causeway context use'", filepath.Join(dir, CurrentFile))
	}
	return name, err
}

// target says which hub a command goes to.
func (c *CLI) target() (api.ClientConfig, error) {
	name, socket := c.Context, c.Socket
	if name != "" && socket != "" {
		return api.ClientConfig{}, Usagef("give --context or --socket, not both")
	}
	if name == "" && socket == "" {
		name, socket = os.Getenv(EnvContext), os.Getenv(EnvSocket)
		if name != "" && socket != "" {
			return api.ClientConfig{}, Usagef("$%s says %.80q and $%s says %.80q, which may be two hubs: unset one, or give --context or --socket", EnvContext, name, EnvSocket, socket)
		}
	}
	if name == "" && socket == "" {
		if dir, err := ContextDir(); err == nil {
			if name, err = Current(dir); err != nil {
				return api.ClientConfig{}, err
			}
		}
	}
	if name == "" {
		return api.ClientConfig{Socket: socket}, nil
	}
	x, err := FindContext(name)
	if err != nil {
		return api.ClientConfig{}, err
	}
	if now := time.Now(); now.Before(x.Expires) && x.ExpiresSoon(now) {
		fmt.Fprintf(c.Err, "causeway: the certificate of %s expires in %s: have another context made with 'causeway admin create'\n", protocol.Printable(x.String()), Left(x.Expires))
	}
	return api.ClientConfig{Context: &x}, nil
}

// Left is how long it is until t, for a person.
func Left(t time.Time) string {
	d := time.Until(t)
	if d > 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.Round(time.Minute).String()
}

// EnvSocket names the admin socket when --socket does not.
const EnvSocket = "CAUSEWAY_SOCKET"
