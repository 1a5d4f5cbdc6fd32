package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v4"

	"causeway/agent/config"
	"causeway/internal/durable"
	"causeway/internal/retry"
	"causeway/internal/sshsig"
	"causeway/protocol"
)

const (
	// fetchLimit bounds one try to fetch a release, fetchTries their number.
	fetchLimit = 10 * time.Minute
	fetchTries = 5
	// takeLimit is how long root may take to take a request.
	takeLimit = 30 * time.Second
	takePoll  = 100 * time.Millisecond
)

// Fetch fetches what wish asks for from base, the hub's address for releases, into
// stateDir, checks it by c, and asks root for it. It returns once root has taken the
// request; what became of it, ReadResult tells.
func Fetch(ctx context.Context, client *http.Client, base string, wish protocol.UpgradeWish, arch, stateDir string, c config.Upgrade) error {
	if err := allowed(c); err != nil {
		return err
	}
	if !protocol.ValidVersion(wish.Version) {
		return fmt.Errorf("%.80q is no version", wish.Version)
	}
	dir := filepath.Join(stateDir, spoolDir)
	if err := os.RemoveAll(dir); err != nil { // of an earlier one
		return fmt.Errorf("clear %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	defer os.RemoveAll(dir)
	fetch := func() error { return fetchInto(ctx, client, base, wish.Version, arch, dir, c.Keys) }
	if err := backoff.Retry(fetch, backoff.WithContext(backoff.WithMaxRetries(backoff.NewExponentialBackOff(), fetchTries-1), ctx)); err != nil {
		return err
	}
	b, err := json.Marshal(wish)
	if err != nil {
		return err
	}
	request := filepath.Join(dir, requestFile)
	if err := durable.WriteFile(request, b); err != nil {
		return fmt.Errorf("write %s: %w", request, err)
	}
	return taken(ctx, request)
}

// taken waits until root has taken the request.
func taken(ctx context.Context, request string) error {
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	t := time.NewTicker(takePoll)
	defer t.Stop()
	for {
		if _, err := os.Stat(request); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				return errors.New("nobody on this host takes the upgrade: it comes with the package's systemd units; is causeway-agent-upgrade.path active?")
			}
			return ctx.Err()
		case <-t.C:
		}
	}
}

// fetchInto fetches manifest, signature and program. An error that another try does
// not mend is backoff's permanent one.
func fetchInto(ctx context.Context, client *http.Client, base, version, arch, dir string, keys []sshsig.PublicKey) error {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	name := protocol.ReleaseName(version)
	small := func(name string, limit int) (b []byte, err error) {
		err = get(ctx, client, base, name, func(r io.Reader) (err error) {
			b, err = readAtMost(r, limit)
			return err
		})
		return b, err
	}
	manifest, err := small(name, protocol.MaxRelease)
	if err != nil {
		return err
	}
	signature, err := small(name+protocol.ReleaseSignature, sshsig.MaxSignature)
	if err != nil {
		return err
	}
	_, f, err := check(manifest, signature, version, arch, keys)
	if err != nil {
		return backoff.Permanent(err)
	}
	err = get(ctx, client, base, f.Name, func(r io.Reader) error { return copyProgram(filepath.Join(dir, programFile), 0o600, r, f) })
	if errors.Is(err, errForeign) {
		err = backoff.Permanent(err)
	}
	if err != nil {
		return err
	}
	for path, b := range map[string][]byte{manifestFile: manifest, signatureFile: signature} {
		if err := durable.WriteFile(filepath.Join(dir, path), b); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(dir, path), err)
		}
	}
	return nil
}

// get hands a file of the hub's to read.
func get(ctx context.Context, client *http.Client, base, name string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+protocol.ReleasePath+url.PathEscape(name), nil)
	if err != nil {
		return backoff.Permanent(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("fetch %s from the hub: %w", name, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		status := retry.FromResponse(resp)
		err := fmt.Errorf("fetch %s from the hub: it answers %w", name, status)
		if !retry.Temporary(status) {
			return backoff.Permanent(err)
		}
		select { // before the backoff's own pause
		case <-ctx.Done():
		case <-time.After(status.After):
		}
		return err
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("fetch %s from the hub: %w", name, err)
	}
	return nil
}
