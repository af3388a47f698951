// The newest events of all users, as they are applied.

export default {
  template: `
    <div class="ac-feed" data-testid="feed" tabindex="0" role="region" aria-label="Newest events">
      <table v-if="events.length">
        <thead><tr><th scope="col">User</th><th scope="col">Action</th><th scope="col">Item</th><th scope="col">Effect</th>
          <th scope="col">Fresh</th><th scope="col">Position</th></tr></thead>
        <tbody><tr v-for="event in events" :key="event.position + event.effect" :class="'effect-' + event.effect">
          <td><a :href="'/?user=' + encodeURIComponent(event.user_id)">{{ event.user_id }}</a></td><td>{{ event.action }}</td>
          <td :title="event.item_id">{{ event.title || event.item_id }}</td><td>{{ event.effect }}</td>
          <td class="num">{{ fresh(event.fresh_ms) }}</td><td><code>{{ event.position }}</code></td>
        </tr></tbody>
      </table>
      <p v-else class="ac-empty">No event yet. Like an item in the shop, or start a replay or the simulation.</p>
    </div>`,
  props: { events: Array },
  methods: {
    fresh(ms) {
      if (ms === undefined) return "";
      return ms < 1000 ? Math.round(ms) + " ms" : "waited " + (ms < 120000 ? Math.round(ms / 1000) + " s" : Math.round(ms / 60000) + " min");
    },
  },
};
