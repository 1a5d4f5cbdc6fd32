package hub

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

// client is the API's own client on the hub's socket.
func (w *world) client() *api.Client {
	c, err := api.NewClient(api.ClientConfig{Socket: filepath.Join(w.dir, "run", "hub.sock")})
	require.NoError(w.t, err)
	w.t.Cleanup(c.Close)
	return c
}

// Of two who saw the same state one changes it; the other is told, whatever the object.
func TestStaleChangesAreRefused(t *testing.T) {
	w := start(t, t.TempDir())
	c, ctx := w.client(), t.Context()
	w.site("idc-sh")
	joined(t, w, "sh-1", api.TokenSpec{Site: "idc-sh", Routes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}})

	site, err := c.Site(ctx, "idc-sh")
	require.NoError(t, err)
	changed, err := c.PatchSite(ctx, "idc-sh", api.SitePatch{MaxAge: api.Forever}, api.IfMatch(site.ETag))
	require.NoError(t, err)
	require.NotEqual(t, site.ETag, changed.ETag)
	stale := func(err error, what string) {
		t.Helper()
		require.ErrorIs(t, err, api.ErrStale)
		require.EqualError(t, err, what+" was changed since you read it; look at it again, then repeat the change")
	}
	_, err = c.PatchSite(ctx, "idc-sh", api.SitePatch{MaxAge: api.MaxAge(1e15)}, api.IfMatch(site.ETag))
	stale(err, "site idc-sh")
	stale(c.DeleteSite(ctx, "idc-sh", api.IfMatch(site.ETag)), "site idc-sh")
	again, err := c.Site(ctx, "idc-sh")
	require.NoError(t, err)
	require.Equal(t, changed, again)

	node, err := c.Node(ctx, "sh-1")
	require.NoError(t, err)
	_, err = c.PatchNode(ctx, "sh-1", api.NodePatch{Labels: map[string]string{"rack": "r1"}}, api.IfMatch(node.ETag))
	require.NoError(t, err)
	_, err = c.PatchNode(ctx, "sh-1", api.NodePatch{Labels: map[string]string{"rack": "r2"}}, api.IfMatch(node.ETag))
	stale(err, "node sh-1")
	_, err = c.ReleaseNode(ctx, "sh-1", api.IfMatch(node.ETag))
	stale(err, "node sh-1")
	route := node.Routes[0]
	_, err = c.DecideRoute(ctx, api.RouteDecision{Node: "sh-1", Prefix: route.Prefix}, api.IfMatch(route.ETag))
	require.NoError(t, err)
	_, err = c.DecideRoute(ctx, api.RouteDecision{Node: "sh-1", Prefix: route.Prefix, Approve: true}, api.IfMatch(route.ETag))
	stale(err, "route 10.1.0.0/24 of node sh-1")
	stale(c.RevokeNode(ctx, "sh-1", api.IfMatch(node.ETag)), "node sh-1")

	_, err = c.Apply(ctx, api.Apply{Documents: []api.ApplyDocument{{Document: []byte(`{"kind":"service","name":"db","ports":[{"port":5432}],"mode":"single-writer","writer":"idc-sh"}`)}}})
	require.NoError(t, err)
	service, err := c.Service(ctx, "db")
	require.NoError(t, err)
	_, err = c.PatchService(ctx, "db", api.ServicePatch{Exclude: []string{"idc-sh"}}, api.IfMatch(service.ETag))
	require.NoError(t, err)
	_, err = c.PatchService(ctx, "db", api.ServicePatch{Include: []string{"idc-sh"}}, api.IfMatch(service.ETag))
	stale(err, "service db")
	stale(c.DeleteObject(ctx, "service", "db", api.IfMatch(service.ETag)), "service db")
	require.NoError(t, c.DeleteObject(ctx, "service", "db"))

	tok := w.token(api.TokenSpec{Site: "idc-sh"})
	tokens, err := c.Tokens(ctx)
	require.NoError(t, err)
	require.Len(t, tokens, 2)
	stale(c.RevokeToken(ctx, tok.ID.String(), api.IfMatch(tokens[0].ETag)), "token "+tok.ID.String())
	require.NoError(t, c.RevokeToken(ctx, tok.ID.String(), api.IfMatch(tokens[1].ETag)))

	require.NoError(t, c.RevokeNode(ctx, "sh-1"), "nobody has to say a version")
	_, err = c.PatchSite(ctx, "nowhere", api.SitePatch{MaxAge: api.Forever}, api.IfMatch("x"))
	require.ErrorIs(t, err, api.ErrNotFound)
}

// Of many who saw the same version at once exactly one gets its change through.
func TestOneOfManyChangesAVersion(t *testing.T) {
	w := start(t, t.TempDir())
	c := w.client()
	w.site("idc-sh")
	site, err := c.Site(t.Context(), "idc-sh")
	require.NoError(t, err)
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := c.PatchSite(context.Background(), "idc-sh", api.SitePatch{MaxAge: api.MaxAge(1e13 + 1e12*int64(i))}, api.IfMatch(site.ETag))
			if err == nil {
				won.Add(1)
			} else if fmt.Sprint(err) == "site idc-sh was changed since you read it; look at it again, then repeat the change" {
				lost.Add(1)
			}
		})
	}
	wg.Wait()
	require.Equal(t, []int32{1, 19}, []int32{won.Load(), lost.Load()})
	t.Logf("20 changes of one version: %d through, %d refused", won.Load(), lost.Load())
}

// The header follows RFC 9110: lists, '*', and no weak tags.
func TestIfMatchHeader(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("idc-sh")
	resp, err := w.admin.Get("http://hub/v1/sites/idc-sh")
	require.NoError(t, err)
	resp.Body.Close()
	etag := resp.Header.Get("ETag")
	require.Regexp(t, `^"[0-9a-f]{20}"$`, etag)
	for header, want := range map[string]int{`"x", ` + etag: 200, "*": 200, "W/" + etag: 412, `"x"`: 412, etag[1 : len(etag)-1]: 412, "": 200} {
		req, err := http.NewRequest(http.MethodPatch, "http://hub/v1/sites/idc-sh", strings.NewReader(`{"max_age":"168h"}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		if header != "" {
			req.Header.Set("If-Match", header)
		}
		resp, err := w.admin.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, want, resp.StatusCode, header)
	}
}
