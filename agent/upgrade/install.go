package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/config"
	"causeway/internal/durable"
	"causeway/internal/sshsig"
	"causeway/protocol"
)

// Service is the agent as root sees it.
type Service interface {
	// Restart has it started anew; it does not wait until it is ready.
	Restart(context.Context) error
	// Probe returns the version that runs and why it is not well yet; "": it
	// holds a session with its hub, and its inventory is acknowledged there.
	Probe(context.Context) (version, problem string)
	// Restarts is how often it ended and was started again since Restart.
	Restarts(context.Context) int
}

// Installer is root's half. Run does all there is to do, and may be killed at any point:
// the next Run goes on.
type Installer struct {
	StateDir string // the agent's, and not trusted
	Dir      string // root's own
	Program  string // what is replaced
	Arch     string
	Version  string // of the program that runs this
	Packaged string // version of the package that the host installed; empty: not known
	Settings config.Upgrade
	Service  Service
	Within   time.Duration // for the new version to find its hub
	Settle   time.Duration // and to stay well without a break
	Log      zerolog.Logger
}

const (
	gatePoll    = 250 * time.Millisecond
	maxRestarts = 3 // of a new version, before it is given up
	backLimit   = 30 * time.Second
	askLimit    = 10 * time.Second // for a program to tell its version
)

// pending is an upgrade whose program is installed, or about to be, and has not
// proven itself.
type pending struct {
	Request
	From    string `json:"from"`
	Minimum string `json:"minimum"`
	SHA256  string `json:"sha256"` // of the new program
}

func (i *Installer) previous() string { return i.Program + ".previous" }
func (i *Installer) next() string     { return i.Program + ".new" }

// Run installs what is asked for, or finishes what an earlier Run began. The error is
// one that the hub was not told of.
func (i *Installer) Run(ctx context.Context) error {
	last, err := ReadResult(i.Dir)
	if err != nil {
		i.Log.Warn().Err(err).Msg("the last result does not read, it counts as none")
	}
	var p pending
	switch b, err := durable.Read(filepath.Join(i.Dir, pendingFile), maxSmall); {
	case err == nil:
		if err := json.Unmarshal(b, &p); err != nil {
			return fmt.Errorf("%s does not read: %w; remove it and %s, and install the package anew", filepath.Join(i.Dir, pendingFile), err, i.previous())
		}
		return i.prove(ctx, p, last)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	req, p, err := i.take(ctx, last)
	if req.ID == 0 {
		return err // nothing that could be answered
	}
	if err != nil {
		return i.tell(last, req, protocol.UpgradeFailed, err.Error())
	}
	if err := i.tell(last, req, protocol.UpgradeInstalling, ""); err != nil {
		return err
	}
	if err := i.swap(p); err != nil {
		return i.tell(last, req, protocol.UpgradeFailed, err.Error())
	}
	return i.prove(ctx, p, last)
}

// take reads a request, checks all of it, and leaves the new program at next().
func (i *Installer) take(ctx context.Context, last Result) (req Request, p pending, err error) {
	root, err := os.OpenRoot(i.StateDir) // whatever the agent puts there leads nowhere else
	if err != nil {
		return req, p, err
	}
	defer root.Close()
	name := func(f string) string { return filepath.Join(spoolDir, f) }
	b, err := readRegular(root, name(requestFile), maxSmall)
	if err == nil {
		err = json.Unmarshal(b, &req)
	}
	// Taken, whatever comes of it: otherwise the path unit starts us for ever.
	defer root.RemoveAll(name(requestFile)) // even a directory, which the agent may have made
	if err != nil {
		return Request{}, p, fmt.Errorf("the request does not read: %w", err)
	}
	if req.ID == 0 || !protocol.ValidVersion(req.Version) {
		return Request{}, p, errors.New("the request names no version, or has no id")
	}
	if err := allowed(i.Settings); err != nil {
		return req, p, err
	}
	manifest, err := readRegular(root, name(manifestFile), protocol.MaxRelease)
	if err != nil {
		return req, p, fmt.Errorf("read the release: %w", err)
	}
	signature, err := readRegular(root, name(signatureFile), sshsig.MaxSignature)
	if err != nil {
		return req, p, fmt.Errorf("read the release's signature: %w", err)
	}
	r, f, err := check(manifest, signature, req.Version, i.Arch, i.Settings.Keys)
	if err != nil {
		return req, p, err
	}
	if !i.Settings.Downgrade {
		if err := i.belowMinimum(r.Version, last.Minimum); err != nil {
			return req, p, err
		}
	}
	in, err := openRegular(root, name(programFile))
	if err != nil {
		return req, p, fmt.Errorf("read the program: %w", err)
	}
	defer in.Close()
	if err := copyProgram(i.next(), 0o755, in, f); err != nil {
		return req, p, err
	}
	if err := i.tellsVersion(ctx, req.Version); err != nil {
		os.Remove(i.next())
		return req, p, err
	}
	minimum := r.Minimum
	if last.Minimum != "" && protocol.CompareVersions(last.Minimum, minimum) > 0 && !i.Settings.Downgrade {
		minimum = last.Minimum
	}
	return req, pending{req, i.Version, minimum, f.SHA256}, nil
}

// belowMinimum says why a version is older than this host goes back to: least is the minimum
// of the releases installed here, and the package that the host installed is one as well.
func (i *Installer) belowMinimum(version, least string) error {
	const allows = "; upgrade.downgrade of the host's configuration allows it"
	switch {
	case least != "" && protocol.CompareVersions(version, least) < 0:
		return fmt.Errorf("%s is below %s, below which a release installed here has forbidden to go back"+allows, version, least)
	case i.Packaged != "" && protocol.CompareVersions(version, i.Packaged) < 0:
		return fmt.Errorf("%s is below %s, which this host's package installed"+allows, version, i.Packaged)
	}
	return nil
}

// tellsVersion runs the new program for its version alone: one that does not start on
// this host is never installed.
func (i *Installer) tellsVersion(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, i.next(), "--version").Output()
	if err != nil {
		return fmt.Errorf("the new program does not start on this host: %w", err)
	}
	if !strings.Contains(string(out[:min(len(out), 1000)]), version) {
		return fmt.Errorf("the new program says that it is %.80q, not %s", strings.TrimSpace(string(out)), version)
	}
	return nil
}

// swap puts the new program in place, and notes that it has to prove itself.
func (i *Installer) swap(p pending) error {
	if err := durable.Remove(i.previous()); err != nil {
		return err
	}
	if err := os.Link(i.Program, i.previous()); err != nil {
		return fmt.Errorf("keep the program that runs: %w", err)
	}
	b, err := json.Marshal(p)
	if err == nil {
		err = durable.WriteFile(filepath.Join(i.Dir, pendingFile), b)
	}
	if err == nil {
		err = os.Rename(i.next(), i.Program)
	}
	if err == nil {
		return durable.SyncDir(filepath.Dir(i.Program))
	}
	return errors.Join(fmt.Errorf("install the new program: %w", err), durable.Remove(filepath.Join(i.Dir, pendingFile)), durable.Remove(i.previous()))
}

// prove starts the agent anew and waits until it is well, or puts the old program back.
func (i *Installer) prove(ctx context.Context, p pending, last Result) error {
	i.Log.Info().Str("was", p.From).Str("version", p.Version).Msg("the new version has to prove itself")
	why := i.gate(ctx, p.Version)
	if ctx.Err() != nil { // told to end: the next Run goes on
		return ctx.Err()
	}
	state := protocol.UpgradeDone
	if why != "" {
		state = protocol.UpgradeFailed
		if err := i.back(ctx, p); err != nil {
			why += "; " + err.Error()
		} else {
			why += "; " + p.From + " is back"
		}
	} else {
		last.Minimum = p.Minimum
	}
	if err := i.tell(last, p.Request, state, why); err != nil {
		return err
	}
	return errors.Join(durable.Remove(filepath.Join(i.Dir, pendingFile)), durable.Remove(i.previous()))
}

// gate is what a new version has to pass; it returns why it did not.
func (i *Installer) gate(ctx context.Context, version string) string {
	if err := i.Service.Restart(ctx); err != nil {
		return "the agent was not started anew: " + err.Error()
	}
	end, well := time.Now().Add(i.Within), time.Time{}
	t := time.NewTicker(gatePoll)
	defer t.Stop()
	for {
		runs, problem := i.Service.Probe(ctx)
		if problem == "" && runs != version {
			problem = "version " + runs + " still runs"
		}
		now := time.Now()
		switch {
		case problem != "":
			well = time.Time{}
			if n := i.Service.Restarts(ctx); n >= maxRestarts {
				return fmt.Sprintf("version %s ended and was started again %d times (%s)", version, n, problem)
			}
			if now.After(end) {
				return fmt.Sprintf("version %s was not well within %s (%s)", version, i.Within, problem)
			}
		case well.IsZero():
			well = now
		case now.Sub(well) >= i.Settle:
			return ""
		}
		select {
		case <-ctx.Done():
			return ctx.Err().Error()
		case <-t.C:
		}
	}
}

// back puts the old program back and waits until it answers.
func (i *Installer) back(ctx context.Context, p pending) error {
	sum, err := fileSum(i.Program)
	if err != nil {
		return fmt.Errorf("the old version is not back: %w", err)
	}
	if sum != p.SHA256 {
		return fmt.Errorf("the program was replaced by somebody else meanwhile, and is left alone")
	}
	if err := os.Rename(i.previous(), i.Program); err != nil {
		return fmt.Errorf("the old version is not back: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(i.Program)); err != nil {
		return err
	}
	if err := i.Service.Restart(ctx); err != nil {
		return fmt.Errorf("the old version is back, and was not started: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	t := time.NewTicker(gatePoll)
	defer t.Stop()
	for {
		if runs, _ := i.Service.Probe(ctx); runs == p.From {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the old version is back, and does not answer")
		case <-t.C:
		}
	}
}

// tell writes the result for the agent to read.
func (i *Installer) tell(last Result, req Request, state protocol.UpgradeState, why string) error {
	e := i.Log.Info()
	if why != "" {
		e = i.Log.Error().Str("cause", why)
	}
	e.Str("version", req.Version).Str("state", string(state)).Msg("upgrade")
	last.UpgradeStatus = protocol.UpgradeStatus{UpgradeWish: req, State: state, Error: protocol.OneLine(why, 500)}
	f := result(i.Dir)
	if err := f.Save(last); err != nil {
		return fmt.Errorf("write %s: %w", f.Path, err)
	}
	return errors.Join(os.Chmod(f.Path, 0o644), os.Chmod(durable.Copy(f.Path), 0o644)) // the agent reads them
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// openRegular opens a regular file of the agent's; one that it made a pipe or device
// would keep us waiting.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readRegular(root *os.Root, name string, limit int) ([]byte, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, limit)
}
